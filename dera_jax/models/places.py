"""The vocabulary at many places, a few places of every row at a time: all logits are never there at once."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

LOGITS = 2**24
"""Of one model at a time, at most, but for those of one place of every row."""


def map_places(function: Callable[[PyTree], PyTree], given: PyTree, words: int, count: int) -> PyTree:
    """Returns `function(given)`, computed for some of the places at a time.

    Args:
      function: of arrays [rows, places, …] to arrays [strengths, rows, places, …].
      given: arrays [rows, count, …].
      words: rows × vocabulary.
    """
    size = 1 << max(LOGITS // words, 1).bit_length() - 1
    size = count if size >= count else math.gcd(size, count)

    def blocks(a):
        return jnp.moveaxis(a.reshape(len(a), count // size, size, *a.shape[2:]), 1, 0)

    def join(a):
        # [blocks, strengths, rows, size, …] -> [strengths, rows, places, …]
        a = jnp.moveaxis(a, 0, 2)
        return a.reshape(*a.shape[:2], count, *a.shape[4:])

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(blocks, given)))
