"""Value heads in folders of their own: the head alone, and which language model it stands on.

`value_head.safetensors` has the head's tensors under the names of our parameters, `value_config.json` the MODEL and
the fingerprint of the language model that it was trained on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from dera_jax import models
from dera_jax.common.files import put, staging
from dera_jax.common.json_files import read_json, write_json
from dera_jax.common.shown import shown
from dera_jax.devices import placement
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.keys import seed_key
from dera_jax.models.trees import flatten, unflatten
from dera_jax.models.value import HEAD, value_config
from dera_jax.policies import hub, manifests, tensors
from dera_jax.policies.policy import Policy
from dera_jax.policies.weights import check_finite, check_kind

CONFIG = "value_config.json"
WEIGHTS = "value_head.safetensors"
USE = "a value head, which gives values in the place of logits"


class ValueSettings(TypedDict):
    """What `value_config.json` holds."""

    reference: str
    """MODEL that the head was trained on."""
    fingerprint: str
    """Of that model."""


def is_value_folder(folder: Path) -> bool:
    """Returns whether a value head lies in a folder."""
    return (folder / CONFIG).is_file()


def is_value_model(name: str) -> bool:
    """Returns whether a MODEL argument is that of a value head in a folder or on the hub."""
    base, adapter = hub.split_adapter(name)
    return adapter is None and is_value_folder(hub.resolve(base))


def read_settings(folder: Path) -> ValueSettings:
    """Returns what a value head says of its language model.

    Raises:
      ValueError: the file is broken, or names no model.
    """
    found = read_json(folder / CONFIG, ValueSettings)
    if not found["reference"] or "\0" in found["reference"]:
        raise ValueError(f"{shown(folder / CONFIG, 200)}: reference: expected a MODEL, found none")
    return found


def fresh_value_head(reference: Policy, seed: int) -> Policy:
    """Returns a language model with a value head that is 0 everywhere, to be trained.

    Raises:
      ValueError: an encoder-decoder, or weights that are quantized.
    """
    config = _value_config(reference)
    if config.quantization:
        raise ValueError(f"{reference.name}: a value head is trained on weights in full precision")
    shapes = models.param_shapes(config)[HEAD]
    head = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    kernel = shapes["inner"]["kernel"]
    drawn = jax.random.normal(seed_key(seed), kernel.shape) / np.sqrt(kernel.shape[0])
    head["inner"]["kernel"] = drawn.astype(kernel.dtype)
    return _with_head(reference, reference.name, head, f"{reference.fingerprint}+value-{seed}")


def load_value_head(model: str, reference: Policy, mesh: Mesh | None = None) -> Policy:
    """Returns the value head of a MODEL on the language model that it was trained on, whose arrays it shares.

    Raises:
      ValueError: files that are missing, broken or damaged; a head of another model.
    """
    folder = hub.resolve(model)
    settings, file = read_settings(folder), folder / WEIGHTS
    if settings["fingerprint"] != reference.fingerprint:
        raise ValueError(
            f"{shown(model, 200)}: the value head was trained on {shown(settings['reference'], 200)}, here it "
            f"stands on {shown(reference.name, 200)}, whose configuration or weights are others"
        )
    config = _value_config(reference)
    listed, flat = tensors.list_file(file), {}
    shapes = flatten(models.param_shapes(config)[HEAD])
    if unknown := sorted(listed.keys() ^ shapes.keys()):
        told = "an unknown" if unknown[0] in listed else "no"
        raise ValueError(f"{shown(file, 200)}: found {told} tensor {shown(unknown[0], 200)}")
    for name, shape in shapes.items():
        tensor = listed[name]
        if tensor.shape != shape.shape:
            raise ValueError(
                f"{shown(file, 200)}: tensor {name}: expected shape {shape.shape} for "
                f"{shown(reference.name, 200)}, found {tensor.shape}"
            )
        check_kind(tensor)
        flat[name] = jnp.asarray(tensor.read(), config.dtype)
        check_finite(np.asarray(flat[name]), tensor, config.dtype)
    own = hashlib.sha256(f"{reference.fingerprint}+{tensors.sha256(file).hex()}".encode()).hexdigest()[:16]
    found = _with_head(reference, model, unflatten(flat), own)
    return replace(found, params=placement.shard_flat(found.params, mesh)) if mesh else found


def save_value_head(
    head: dict[str, np.ndarray], folder: Path, reference: str, fingerprint: str, manifest: dict
) -> None:
    """Writes a value head as a folder: the weights, the model that it stands on, then the manifest.

    Args:
      head: its parameters by their dotted paths within the head.
      reference: MODEL that it was trained on.
      fingerprint: of that model.

    Raises:
      ValueError: the folder cannot be written.
    """
    with staging(folder, WEIGHTS) as place:
        arrays = {name: np.ascontiguousarray(value) for name, value in head.items()}
        save_file(arrays, place / WEIGHTS, metadata={"format": "pt"})
        put(place / WEIGHTS, folder)
    write_json(folder / CONFIG, ValueSettings(reference=reference, fingerprint=fingerprint))
    manifests.write_manifest(folder, manifest)


def check_language_models(policies: Sequence[Policy]) -> None:
    """Raises ValueError where one of the policies is a value head, which has no probabilities."""
    for policy in policies:
        if policy.value_of is not None:
            raise ValueError(f"{shown(policy.name, 200)}: expected a language model, found {USE}")


def _with_head(reference: Policy, name: str, head: dict, fingerprint: str) -> Policy:
    return replace(
        reference,
        name=name,
        config=_value_config(reference),
        params=reference.params | {HEAD: head},
        fingerprint=fingerprint,
        beta=None,
        value_of=reference.fingerprint,
    )


def _value_config(reference: Policy):
    if not isinstance(reference.config, DecoderConfig):
        raise ValueError(
            f"{shown(reference.name, 200)}: value heads are for decoder-only models, found an encoder-decoder"
        )
    check_language_models([reference])
    return value_config(reference.config)
