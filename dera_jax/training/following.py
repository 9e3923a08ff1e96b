"""A reference that follows the policy (arXiv:2404.09656):  θ_ref ← (1 − α) θ_ref + α θ,  every τ steps.

With adapters θ are the weights that they change, W + scale · A B. A mixture of products is no product of
mixtures: the reference then holds what is added to each W as a matrix, D ← (1 − α) D + α scale · A B. Where
α = 1 it is the policy of some steps ago, and a copy of A and B is enough.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dera_jax.models.binding import ModelConfig
from dera_jax.models.linear import PRECISION
from dera_jax.models.trees import flatten
from dera_jax.policies.policy import Policy
from dera_jax.training import losses, parameters

ADDED = ".added"
"""Ends the name of what is added to a kernel."""


def start(policy: Policy, reference: Policy, alpha: float) -> PyTree:
    """Returns the reference's own copy of what follows the policy, flat, in float32.

    Raises:
      ValueError: the reference is neither of the policy's shape nor what the policy's adapters stand on.
    """
    own, frozen = parameters.split(policy.params)
    its_own, its_frozen = parameters.split(reference.params)
    if policy.config.adapters and not reference.config.adapters:
        # What it would be with the policy's adapters: B is 0.
        its_frozen = flatten(reference.params)
        its_own = {path: jnp.zeros_like(a) if path.endswith("lora_b") else a for path, a in own.items()}
    same = jax.tree.map(jnp.shape, its_own) == jax.tree.map(jnp.shape, own)
    shared = all(a is frozen.get(path) for path, a in its_frozen.items())
    if not (same and shared and its_frozen.keys() == frozen.keys()):
        raise ValueError(
            f"a reference that follows the policy has to be of its shape: expected that of {policy.name}"
            f"{', or what its adapters stand on' if policy.config.adapters else ''}, found {reference.name}"
        )
    return its_own if alpha == 1 else _followed(policy.config, its_own)


def follow(config: ModelConfig, alpha: float, steps: int) -> Callable:
    """Returns what renews the reference after a step, see `optimization.Renew`."""

    def renew(params: PyTree, kept: dict, _: object, step: Int[Array, ""]) -> dict:
        now = params if alpha == 1 else _followed(config, params)
        share = jnp.where(step % steps == 0, alpha, 0.0)
        return {"reference": losses.soft_update(kept["reference"], now, share)}

    return renew


def read(config: ModelConfig, reference: PyTree, frozen: PyTree) -> tuple[ModelConfig, PyTree]:
    """Returns configuration and parameters that a reference which follows computes with."""
    if not any(path.endswith(ADDED) for path in reference):
        return config, parameters.whole(config, reference, frozen)
    kernels = {path.removesuffix(ADDED): added for path, added in reference.items()}
    changed = {path: frozen[path].astype(jnp.float32) + added for path, added in kernels.items()}
    bare = replace(config, adapters=())
    return bare, parameters.whole(bare, changed, frozen)


def _followed(config: ModelConfig, params: PyTree) -> PyTree:
    """Returns trained parameters as they are mixed: of adapters what they add to their kernels."""
    if not config.adapters:
        return params
    return {
        f"{one.path}.kernel{ADDED}": one.scale
        * jnp.matmul(params[f"{one.path}.lora_a"], params[f"{one.path}.lora_b"], precision=PRECISION)
        for one in config.adapters
    }
