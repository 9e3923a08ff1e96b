"""Vectors that are added to the residual stream behind a block."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dera_jax.models.linear import WeightsConfig

STEERING = "steering"
"""What the names of vectors among the parameters begin with, in their last part."""


class Steering(nnx.Module):
    """x + v at every position; of models that are read together, v of each row's own model.

    Source: Turner et al. 2023, arXiv:2308.10248; Panickssery et al. 2023, arXiv:2312.06681, §3.
    """

    def __init__(self, config: WeightsConfig, width: int):
        self.members, self.steered = config.members, config.steered
        for member in config.steered:
            setattr(self, vector_name(member, config.members), nnx.Param(jnp.zeros(width, config.dtype)))

    def __call__(self, x: Float[Array, "rows length width"]) -> Float[Array, "rows length width"]:
        for member in self.steered:
            vector = getattr(self, vector_name(member, self.members))[...]
            if self.members > 1:
                own = jnp.arange(x.shape[0]) % self.members == member
                vector = jnp.where(own[:, None, None], vector, 0)
            x = x + vector
        return x


def vector_name(member: int, members: int) -> str:
    """Returns the name of a member's vector; that of a model by itself has no number."""
    return f"{STEERING}{member}" if members > 1 else STEERING


def vector_path(layer: int) -> str:
    """Returns the path of the vector behind a block in the parameters of a model by itself."""
    return f"blocks.{layer}.steer.{STEERING}"
