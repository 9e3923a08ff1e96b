"""Sampling that differs from row to row: its settings are arrays, so that no value of theirs is compiled for."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.sampling import COLDEST, HOTTEST, Sampling, nucleus_by_bisection, sample

EVERY_WORD = np.iinfo(np.int32).max
"""As top-k: no vocabulary has so many."""


class RowSampling(NamedTuple):
    """How the token of each row is drawn from its mixed logits."""

    temperature: Float[Array, " rows"]
    """Divides the logits; below `COLDEST` the most probable word is taken."""
    top_k: Int[Array, " rows"]
    """Number of most probable words kept; those as probable as the last are kept too."""
    top_p: Float[Array, " rows"]
    """Smallest set of words with at least this probability; 1 keeps all."""

    @classmethod
    def of(cls, configs: Sequence[DecodeConfig]) -> "RowSampling":
        """Returns the sampling of rows with such settings."""
        return cls(
            np.array([min(c.temperature, HOTTEST) for c in configs], np.float32),
            np.array([min(c.top_k or EVERY_WORD, EVERY_WORD) for c in configs], np.int32),
            np.array([1.0 if c.top_p is None else c.top_p for c in configs], np.float32),
        )

    def sample(
        self, keys: Key[Array, " rows"], logits: Float[Array, "rows vocab"]
    ) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
        """Returns what `sampling.sample` does for each row's own settings."""
        greedy = self.temperature < COLDEST
        divided = logits / jnp.where(greedy, 1.0, self.temperature)[:, None]
        # What no row asks for costs nothing.
        kept = jax.lax.cond(
            jnp.any(self.top_k < logits.shape[-1]), _keep_top_k, lambda words, _: words, divided, self.top_k
        )
        kept = jax.lax.cond(jnp.any(self.top_p < 1), _keep_top_p, lambda words, _: words, kept, self.top_p)
        word, logprob = sample(keys, kept, Sampling())
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jnp.where(greedy, best, word), jnp.where(greedy, 0.0, logprob)


def _keep_top_k(logits: Float[Array, "rows vocab"], count: Int[Array, " rows"]) -> Float[Array, "rows vocab"]:
    """Returns the logits of each row's `count` largest, and of those equal to the last; the others −inf."""
    threshold = kth_largest(logits, count)
    return jnp.where(logits >= threshold[:, None], logits, -jnp.inf)


def _keep_top_p(
    logits: Float[Array, "rows vocab"], top_p: Float[Array, " rows"]
) -> Float[Array, "rows vocab"]:
    """Returns the logits of each row's nucleus, the others −inf."""
    threshold = nucleus_by_bisection(logits, top_p[:, None])
    return jnp.where((logits >= threshold) | (top_p >= 1)[:, None], logits, -jnp.inf)


def kth_largest(logits: Float[Array, "rows vocab"], count: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """Returns the `count`-th largest of each row, the smallest where there are fewer, without sorting.

    Bisection keeps `low` where at least `count` are as large; 32 halvings of the ordered bit patterns of
    float32 are exact.
    """
    patterns = _ordered(logits + 0.0)  # −0 is 0
    least = jnp.minimum(count, logits.shape[-1])

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        enough = jnp.sum(patterns >= middle[:, None], axis=-1) >= least
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    limits = jnp.iinfo(jnp.int32)
    bounds = jnp.full(len(logits), limits.min, jnp.int32), jnp.full(len(logits), limits.max, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jax.lax.bitcast_convert_type(_flipped(low), jnp.float32)


def _ordered(values: Float[Array, "rows vocab"]) -> Int[Array, "rows vocab"]:
    """Returns whole numbers in the order of the float32 values; `_flipped` is its own inverse on the bits."""
    return _flipped(jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32))


def _flipped(bits: Int[Array, "..."]) -> Int[Array, "..."]:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
