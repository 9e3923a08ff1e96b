"""Value models of PPO: what is expected of a completion before each of its tokens is drawn."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dera_jax import models
from dera_jax.data.batches import Batch
from dera_jax.models.reward import RewardConfig
from dera_jax.policies.policy import Policy
from dera_jax.scoring.logprobs import completion_hidden
from dera_jax.training import parameters
from dera_jax.training.config import PPOConfig

POLICY, VALUE = "policy.", "value."
"""Beginnings of the names of the policy's parameters, and of a value model's own, which lie beside them."""
HIDDEN = 128
"""Width of the two layers of a network on the reference's hidden states."""
Values = Float[Array, "rows completion"]


@runtime_checkable
class ValueModel(Protocol):
    """What predicts the reward to come."""

    trained: PyTree
    """Its own parameters, as they start; named with `VALUE`."""

    def reads(self, batch: Batch) -> Float[np.ndarray, "rows completion width"] | None:
        """Returns what it reads of a rollout, once for all updates; None where its parameters read it anew."""
        ...

    def __call__(self, params: PyTree, frozen: PyTree, batch: Batch, read: Array | None) -> Values:
        """Returns the value before each completion token, in the reward's unit. Differentiable.

        Args:
          params: all that is trained, the policy's parameters too.
          frozen: the policy's parameters that are not trained.
          read: what `reads` gave.
        """
        ...


def make_value_model(policy: Policy, reference: Policy, ppo: PPOConfig, own: PyTree, longest: int):
    """Returns the value model that `ppo` asks for: 0 everywhere, so that advantages start as the rewards to come.

    Args:
      own: the policy's trained parameters.
      longest: completions' largest length, in tokens.
    """
    if ppo.value_head == "reference":
        return OnReference(reference, longest)
    return OnTrunk(policy, own, shared=ppo.value_head == "shared")


def reader(model: ValueModel, frozen: PyTree) -> Callable[[PyTree, Batch, Array | None], np.ndarray]:
    """Returns a value model's values of a rollout, compiled."""
    compiled = jax.jit(model.__call__)
    return lambda params, batch, read: np.asarray(compiled(params, frozen, batch, read))


class OnTrunk:
    """A head on a language model: on the policy itself, or on one that starts as the policy does."""

    def __init__(self, policy: Policy, own: PyTree, *, shared: bool):
        config = policy.config
        adapters = tuple(
            replace(one, path=f"trunk.{one.path}") for one in config.adapters if one.path != "head"
        )
        self.config = RewardConfig(
            trunk=replace(config, tie_embeddings=True),
            head="each",
            dtype=config.dtype,
            quantization=config.quantization,
            adapters=adapters,
        )
        self.shared = shared
        value = {"score.kernel": jnp.zeros((config.width, 1), jnp.float32)} | ({} if shared else _trunk(own))
        self.trained = parameters.named(VALUE, value)

    def reads(self, batch: Batch) -> None:
        """Returns nothing: what the trunk makes of the texts changes with every update."""

    def __call__(self, params: PyTree, frozen: PyTree, batch: Batch, read: Array | None) -> Values:
        """Returns the values, see `ValueModel`."""
        own = parameters.part(VALUE, params)
        own |= _trunk(parameters.part(POLICY, params)) if self.shared else {}
        model = models.bind(self.config, parameters.whole(self.config, own, _trunk(frozen)))
        mask = jnp.asarray(batch.mask) if self.config.trunk.encoder_decoder else batch.fed
        return model.completion_values(jnp.asarray(batch.tokens), mask, batch.completion_mask.shape[1])


def _trunk(params: PyTree) -> PyTree:
    """Returns a language model's parameters, flat, as those of a trunk: all but the head's."""
    return parameters.named("trunk.", {n: a for n, a in params.items() if not n.startswith("head.")})


class OnReference:
    """A small network on the frozen reference's hidden states and the number of tokens so far.

    V(hₜ, t) = W₃ silu(W₂ silu(W₁ [hₜ / rms(hₜ), φ(t)] + c₁) + c₂) + c₃,

    hₜ what the reference's own head reads, φ sines and cosines of t. Language models hardly know how long a text
    is, and rewards of lengths are of nothing else.
    """

    def __init__(self, reference: Policy, longest: int):
        self.reference = reference
        self.longest = longest
        sizes = [reference.config.width + _positions(1, longest).shape[1], HIDDEN, HIDDEN, 1]
        random = np.random.default_rng(0)
        value = {}
        for layer, (inner, outer) in enumerate(pairwise(sizes)):
            spread = 0.0 if outer == 1 else inner**-0.5
            value[f"{layer}.kernel"] = jnp.asarray(spread * random.normal(size=(inner, outer)), jnp.float32)
            value[f"{layer}.bias"] = jnp.zeros(outer, jnp.float32)
        self.trained = parameters.named(VALUE, value)

    def reads(self, batch: Batch) -> Float[np.ndarray, "rows completion width"]:
        """Returns the reference's hidden states where each token was drawn, of root mean square 1."""
        return np.asarray(_normed(self.reference.config, self.reference.params, batch))

    def __call__(self, params: PyTree, frozen: PyTree, batch: Batch, read: Array | None) -> Values:
        """Returns the values, see `ValueModel`."""
        own = parameters.part(VALUE, params)
        rows, length = read.shape[:2]
        positions = jnp.asarray(_positions(length, self.longest))
        hidden = jnp.concatenate(
            [read, jnp.broadcast_to(positions, (rows, *positions.shape))], axis=-1, dtype=jnp.float32
        )
        for layer in range(2):
            hidden = jax.nn.silu(hidden @ own[f"{layer}.kernel"] + own[f"{layer}.bias"])
        return (hidden @ own["2.kernel"] + own["2.bias"])[..., 0]


def _positions(length: int, longest: int) -> Float[np.ndarray, "length features"]:
    """Returns t / longest, and sines and cosines of t with wavelengths of 4, 8, … up to at least 2 · longest tokens."""
    places = np.arange(length, dtype=np.float32)[:, None]
    angles = 2 * np.pi * places / 2.0 ** np.arange(2, math.ceil(math.log2(2 * longest)) + 1, dtype=np.float32)
    return np.concatenate([places / longest, np.sin(angles), np.cos(angles)], axis=1)


def _normed_hidden(config: models.ModelConfig, params: PyTree, batch: Batch) -> Array:
    hidden = completion_hidden(config, params, batch).astype(jnp.float32)
    return hidden * jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + 1e-6)


_normed = jax.jit(_normed_hidden, static_argnames="config")
