"""Prompts with given completions, as the rectangular arrays that teacher forcing takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from dera_jax.tokenizer import bucket_length

Array = jax.Array | np.ndarray
"""Made on the host; under jit, traced."""


class Batch(NamedTuple):
    """Prompts padded on the left, completions on the right: the border stands in one column.

    Example: prompts "a b" and "c", completions "x" and "y z", in buckets of 2 and 2 slots:
    tokens `[[a, b, x, ·], [·, c, y, z]]`, completion_mask `[[1, 0], [1, 1]]`.
    """

    tokens: Int[Array, "rows length"]
    mask: Bool[Array, "rows length"]
    completion_mask: Bool[Array, "rows completion"]

    @property
    def completions(self) -> Int[Array, "rows completion"]:
        """The completions' tokens."""
        return self.tokens[:, -self.completion_mask.shape[1] :]


def make_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], rows: int | None = None
) -> Batch:
    """Returns a batch of `rows` rows (default: as many as prompts), the rest of them empty.

    Both parts are padded to the bucket of their longest, so that few shapes are compiled.
    """
    rows = rows or len(prompts)
    before = bucket_length(max(map(len, prompts)))
    after = bucket_length(max(map(len, completions)))
    tokens = np.zeros((rows, before + after), np.int32)
    mask = np.zeros((rows, before + after), bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = [*prompt, *completion]
        start = before - len(prompt)
        tokens[row, start : start + len(ids)] = ids
        mask[row, start : start + len(ids)] = True
    return Batch(tokens, mask, mask[:, before:])


def shuffled(count: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns the positions that a step takes: every epoch a new order, each position once in it."""

    def positions(step: int) -> np.ndarray:
        flat = np.arange(step * batch_size, (step + 1) * batch_size)
        orders = {e: np.random.default_rng([seed, int(e)]).permutation(count) for e in set(flat // count)}
        return np.array([orders[i // count][i % count] for i in flat])

    return positions
