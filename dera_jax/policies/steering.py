"""Steering files, and policies whose residual stream they shift.

One safetensors file: `layer.N`, a vector for the stream behind block N (from 0, as `model.layers.N` of Hugging Face
counts them), and perhaps `probe.weight` and `probe.bias`, a linear probe. The metadata say of which model it is.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save

from dera_jax.common.files import write_bytes
from dera_jax.common.shown import shown
from dera_jax.devices import placement
from dera_jax.devices.mesh import mesh_of
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.steering import vector_path
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import tensors
from dera_jax.policies.policy import Policy
from dera_jax.policies.weights import check_finite, check_kind

FORMAT, VERSION = "dera_jax steering", "1"
ENDING = ".safetensors"
_LAYER = re.compile(r"layer\.(0|[1-9]\d{0,5})")
_COUNT = re.compile(r"[1-9]\d{0,8}")


@dataclass(frozen=True)
class Probe:
    """P(yes | x) = sigmoid(w · x + b) of the residual stream behind a block at a prompt's last token."""

    layer: int
    weight: Float[np.ndarray, " width"]
    bias: float


@dataclass(frozen=True)
class Steering:
    """Vectors for the residual stream of models of one width and depth."""

    width: int
    num_layers: int
    vectors: Mapping[int, Float[np.ndarray, " width"]]
    """By the block that they are added behind, from 0."""
    probe: Probe | None = None
    made: Mapping = field(default_factory=dict)
    """How: model, data, numbers; for people."""
    where: str = "steering"
    """The file, for errors."""

    @property
    def fingerprint(self) -> str:
        """Hash of the vectors."""
        digest = hashlib.sha256()
        for layer, vector in sorted(self.vectors.items()):
            digest.update(f"{layer}:".encode() + np.ascontiguousarray(vector, "<f4").tobytes())
        return digest.hexdigest()[:16]


def write_steering(path: str | Path, steering: Steering) -> None:
    """Writes a steering file whole or not at all.

    Raises:
      ValueError: it cannot be written.
    """
    arrays = {f"layer.{n}": np.ascontiguousarray(v, np.float32) for n, v in steering.vectors.items()}
    told = {
        "format": FORMAT,
        "version": VERSION,
        "width": str(steering.width),
        "num_layers": str(steering.num_layers),
        "made": json.dumps(dict(steering.made), ensure_ascii=False),
    }
    if probe := steering.probe:
        arrays["probe.weight"] = np.ascontiguousarray(probe.weight, np.float32)
        arrays["probe.bias"] = np.array([probe.bias], np.float32)
        told["probe_layer"] = str(probe.layer)
    write_bytes(path, save(arrays, metadata=told))


def read_steering(path: str | Path) -> Steering:
    """Returns what a steering file holds.

    Raises:
      ValueError: no such file, another format, or vectors of a wrong place, shape, type or that are not finite.
    """
    file, where = Path(path), shown(path, 200)
    if os.path.isdir(file):
        raise ValueError(f"{where}: expected a steering file, found a folder")
    try:
        listed = tensors.list_file(file)
    except OSError as error:  # a name that is too long
        raise ValueError(f"{where}: {error.strerror}") from None
    with safe_open(file, framework="numpy") as opened:
        told = opened.metadata() or {}
    if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        found = " ".join(str(told[name]) for name in ("format", "version") if name in told) or "no format"
        raise ValueError(
            f"{where}: expected a file of eval.steer ({FORMAT} {VERSION}), found {shown(found, 60)}"
        )
    width, num_layers = (_number(told, name, where) for name in ("width", "num_layers"))
    vectors, rest = {}, set(listed)
    for name, tensor in listed.items():
        if found := _LAYER.fullmatch(name):
            vectors[_layer(int(found[1]), num_layers, f"{where}: {name}")] = _values(tensor, (width,))
            rest.discard(name)
    probe = None
    if {"probe.weight", "probe.bias"} <= rest:
        layer = _layer(_number(told, "probe_layer", where, least=0), num_layers, f"{where}: probe_layer")
        weight, bias = _values(listed["probe.weight"], (width,)), _values(listed["probe.bias"], (1,))
        probe, rest = Probe(layer, weight, float(bias[0])), rest - {"probe.weight", "probe.bias"}
    if rest:
        raise ValueError(f"{where}: expected tensors layer.N, found {shown(min(rest), 60)}")
    if not vectors:
        raise ValueError(f"{where}: expected a tensor layer.N at least, found none")
    return Steering(width, num_layers, vectors, probe, {"made": told.get("made", "")}, where)


def check_fits(steering: Steering, policy: Policy) -> None:
    """Raises ValueError unless a file is of a decoder of the policy's width and depth."""
    config, name = policy.config, shown(policy.name, 200)
    if policy.value_of is not None or not isinstance(config, DecoderConfig):
        found = "an encoder-decoder" if config.encoder_decoder else "a value head"
        raise ValueError(f"{name}: expected a decoder-only language model to steer, found {found}")
    if (steering.width, steering.num_layers) != (config.width, config.num_layers):
        raise ValueError(
            f"{steering.where}: expected vectors of width {config.width} for the {config.num_layers} layers of "
            f"{name}, found width {steering.width} and {steering.num_layers} layers"
        )


def steered(policy: Policy, steering: Steering | str | Path, strength: float = 1.0) -> Policy:
    """Returns the policy with vectors added to its residual stream, at every position.

        x_n ← x_n + s · v_n    behind block n

    Its other arrays are the policy's own. Another strength, or vectors of other layers, compile nothing anew. What
    steers already adds up.

    Args:
      steering: what `read_steering` gives, or a file.
      strength: s, any finite number; 0 changes nothing.

    Raises:
      ValueError: a file that cannot be read, or is of a model of another width or depth; a number that is not finite.

    Source: Panickssery et al. 2023, arXiv:2312.06681, §3.
    """
    steering = steering if isinstance(steering, Steering) else read_steering(steering)
    check_fits(steering, policy)
    if not math.isfinite(strength):
        raise ValueError(f"steering strength: expected a finite number, found {strength}")
    config, mesh = policy.config, mesh_of(policy.params)
    there, own = flatten(policy.params), {}
    for layer in range(config.num_layers):
        path, vector = vector_path(layer), np.zeros(config.width, np.float32)
        if layer in steering.vectors:
            with np.errstate(over="ignore"):
                vector = (np.float64(strength) * steering.vectors[layer]).astype(np.float32)
        if path in there:
            vector = vector + np.asarray(there[path], np.float32)
        own[path] = jnp.asarray(vector, config.dtype)
        if not np.isfinite(np.asarray(own[path], np.float32)).all():
            raise ValueError(
                f"{steering.where}: layer.{layer} at strength {strength:g} is too large for {config.dtype}"
            )
    return replace(
        policy,
        config=replace(config, steered=(0,)),
        params=unflatten(there | (placement.shard_flat(own, mesh) if mesh else own)),
        fingerprint=tensors.mark(
            policy.fingerprint, f"steered by {steering.fingerprint} × {float(strength)!r}"
        ),
        beta=None,
    )


def _values(tensor: tensors.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    if tensor.shape != shape:
        raise ValueError(
            f"{shown(tensor.file, 200)}: tensor {tensor.name}: expected shape {shape}, found {tensor.shape}"
        )
    check_kind(tensor)
    values = np.asarray(tensor.read(), np.float32)
    check_finite(values, tensor, "float32")
    return values


def _number(told: Mapping[str, str], name: str, where: str, least: int = 1) -> int:
    found = told.get(name, "none")
    if not (_COUNT.fullmatch(found) or (found == "0" and least == 0)):
        raise ValueError(f"{where}: {name}: expected a whole number, found {shown(found, 60)}")
    return int(found)


def _layer(layer: int, num_layers: int, where: str) -> int:
    if layer >= num_layers:
        raise ValueError(f"{where}: expected a layer from 0 to {num_layers - 1}, found {layer}")
    return layer
