"""Weight-combined models: one model whose parameters lie between, or beyond, those of a pair (Fig. 8)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from dera_jax.common.checks import check_choice
from dera_jax.common.files import make_folder, remove_leftovers
from dera_jax.common.json_files import write_json
from dera_jax.common.locks import lock_folder, unlock
from dera_jax.common.shown import shown
from dera_jax.models.binding import ModelConfig
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import families, hub, manifests
from dera_jax.policies.adapters import merge_adapters, untie
from dera_jax.policies.policy import Policy
from dera_jax.policies.value_heads import USE, check_language_models, is_value_folder
from dera_jax.realign import strength_weights
from dera_jax.strengths import Strength

METHODS = ("linear", "slerp")
PARALLEL = 1e-4
"""Tensors whose angle (in radians) is less are combined linearly: a slerp's limit there. So are those that
point in opposite directions but for as much: of all great circles through both, none is theirs."""


def combine(policies: Sequence[Policy], lambda_: Strength, method: str = "linear") -> Policy:
    """Returns the policy with parameters θ = (1 − Σλ) θ_ref + Σ λₘ θₘ, in the aligned model's type.

    This is one model, not a mixture of two: it decodes at half the price, and it is not decoding-time
    realignment (the paper's weight-combination baseline). Sums are in float32.

    Args:
      policies: of `load_policies`, the reference first, of one architecture; adapters are merged.
      lambda_: strength, a number for each aligned model; 0 gives the reference and 1 the aligned model.
      method: linear; or slerp, which turns each tensor along the great circle between the two.

    Raises:
      ValueError: architectures that differ, quantized weights, or a slerp of more than two models.
    """
    check_choice("method", method, METHODS)
    if len(lambda_) != len(policies) - 1:
        raise ValueError(
            f"lambda: expected a number for each of {len(policies) - 1} aligned, found {lambda_}"
        )
    if method == "slerp" and len(policies) != 2:
        raise ValueError(f"method slerp: expected one aligned model, found {len(policies) - 1}")
    check_language_models(policies)
    merged = [_merged(policy) for policy in policies]
    if not all(policy.config.tie_embeddings for policy in merged):
        merged = [_untied(policy) for policy in merged]
    *_, last = merged
    _check_same({policy.name: policy.config for policy in merged})
    weights = strength_weights([lambda_])[0]
    flats = [flatten(policy.params) for policy in merged]
    params = {}
    for path, value in flats[-1].items():
        tensors = [flat[path].astype(jnp.float32) for flat in flats]
        found = _slerp(*tensors, lambda_[0]) if method == "slerp" else _linear(tensors, weights)
        params[path] = found.astype(value.dtype)
    return replace(last, params=unflatten(params), beta=None)


def check_architectures(names: Sequence[str]) -> None:
    """Raises ValueError where models cannot be combined, as their configurations say; reads no weights."""
    configs = {}
    for name in names:
        folder = hub.resolve(hub.split_adapter(name)[0])
        if is_value_folder(folder):
            raise ValueError(f"{shown(name, 200)}: expected a language model, found {USE}")
        config = families.model_config(folder, families.read_config(folder))
        # Those of one model untie the heads of all.
        configs[name] = replace(config, tie_embeddings=True)
    _check_same(configs)


def check_free(out: Path) -> None:
    """Raises ValueError where a folder holds a model or a run, unless a killed command was writing it."""
    taken = manifests.holds_model(out) or (out / manifests.NAME).exists()
    if taken and manifests.read_manifest(out).get("finished") is not False:
        what = "model" if manifests.holds_model(out) else "run"
        raise ValueError(f"{out}: already holds a {what}; choose another --out or remove it")


@contextmanager
def open_folder(out: Path, facts: dict) -> Iterator[None]:
    """Keeps others out of a folder and says in it that a model is being written there.

    Raises:
      ValueError: another command is in it, or it holds a model by now.
    """
    make_folder(out)
    lock = lock_folder(out)
    try:
        check_free(out)
        remove_leftovers(out)
        write_json(out / manifests.NAME, facts | {"finished": False})
        yield
    finally:
        unlock(lock)


def _check_same(configs: dict[str, ModelConfig]) -> None:
    *others, last = configs
    for other in others:
        one, same = replace(configs[other], dtype=configs[last].dtype), configs[last]
        if one != same:
            raise ValueError(
                f"expected one architecture, found {shown(other, 200)} and {shown(last, 200)} to differ: "
                f"{_difference(one, same)}"
            )


def _difference(one: ModelConfig, other: ModelConfig) -> str:
    """Returns what two configurations differ in, such as `vocab_size 512 and 576`."""
    if type(one) is not type(other):
        return f"{type(one).__name__} and {type(other).__name__}"
    names = [field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)]
    told = [f"{name} {getattr(one, name)} and {getattr(other, name)}" for name in names]
    if names == ["vocab_size"]:
        told.append("one embedding is padded: resize_token_embeddings of transformers makes them equal")
    return shown("; ".join(told), 300)


def _merged(policy: Policy) -> Policy:
    if policy.config.quantization:
        raise ValueError(
            f"{policy.name}: expected weights in full precision, found {policy.config.quantization}"
        )
    if policy.config.steered:
        raise ValueError(
            f"{policy.name}: expected a policy without steering; its logits can be mixed, its weights not"
        )
    config, params = merge_adapters(policy.config, policy.params)
    return replace(policy, config=config, params=params)


def _untied(policy: Policy) -> Policy:
    config, params = untie(policy.config, policy.params)
    return replace(policy, config=config, params=params)


@jax.jit
def _linear(
    tensors: Sequence[Float[Array, "*shape"]], weights: Float[Array, " models"]
) -> Float[Array, "*shape"]:
    """Returns Σₘ wₘ θₘ; a weight of 0 leaves its tensor out, bit for bit."""
    return sum(jnp.where(w == 0, 0.0, w * tensor) for w, tensor in zip(weights, tensors, strict=True))


@jax.jit
def _slerp(
    reference: Float[Array, "*shape"], aligned: Float[Array, "*shape"], strength: Float[ArrayLike, ""]
) -> Float[Array, "*shape"]:
    """Returns (sin((1 − λ)Ω) θ_ref + sin(λΩ) θ_aligned) / sin Ω, Ω the angle between the two tensors."""
    norms = jnp.linalg.norm(reference), jnp.linalg.norm(aligned)
    one, other = (x / jnp.maximum(n, 1e-30) for x, n in zip((reference, aligned), norms, strict=True))
    # Of chord and its complement, not by the arc cosine, which has no digits left where they are nearly parallel.
    angle = 2 * jnp.arctan2(jnp.linalg.norm(one - other), jnp.linalg.norm(one + other))
    straight = (angle < PARALLEL) | (angle > jnp.pi - PARALLEL) | (jnp.minimum(*norms) == 0)
    turn = jnp.where(straight, 1.0, angle)
    first = jnp.where(straight, 1 - strength, jnp.sin((1 - strength) * turn) / jnp.sin(turn))
    second = jnp.where(straight, strength, jnp.sin(strength * turn) / jnp.sin(turn))
    return first * reference + second * aligned
