"""Prompts with given completions, as the rectangular arrays that teacher forcing takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from dera_jax.data.buckets import bucket_length, padded_length

Array = jax.Array | np.ndarray
"""Made on the host; under jit, traced."""


class Batch(NamedTuple):
    """Prompts with completions: prompts padded on the left, so that the border stands in one column.

    Example: prompts "a b" and "c", completions "x" and "y z", in buckets of 2 and 2 slots:
    tokens `[[a, b, x, ·], [·, c, y, z]]`, completion_mask `[[1, 0], [1, 1]]`.

    With `starts`, which pads less, all padding is on the right: tokens `[[a, b, x], [c, y, z]]`, starts
    `[2, 1]`.
    """

    tokens: Int[Array, "rows length"]
    mask: Bool[Array, "rows length"]
    completion_mask: Bool[Array, "rows completion"]
    starts: Int[Array, " rows"] | None = None
    """Slot of each completion's first token."""

    @property
    def fed(self) -> Bool[Array, "rows length"]:
        """What a decoder-only model is fed: the last token of a row is drawn and never read.

        So prompt and completion together may have one token more than the context.
        """
        return self.mask & jnp.pad(jnp.asarray(self.mask)[:, 1:], ((0, 0), (0, 1)))

    @property
    def completions(self) -> Int[Array, "rows completion"]:
        """The completions' tokens."""
        count = self.completion_mask.shape[1]
        if self.starts is None:
            return self.tokens[:, -count:]
        # Beyond the row's end, where nothing is read, its last slot stands in.
        places = jnp.minimum(self.starts[:, None] + jnp.arange(count), self.tokens.shape[1] - 1)
        return jnp.take_along_axis(jnp.asarray(self.tokens), places, axis=1)


def make_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    rows: int | None = None,
    *,
    tight: bool = False,
    bucket: Callable[[int], int] = bucket_length,
    learned: Sequence[Sequence[bool] | None] | None = None,
    shape: tuple[int, int] | None = None,
) -> Batch:
    """Returns a batch of `rows` rows (default: as many as prompts), the rest of them empty.

    Both parts are padded to the bucket of their longest, so that few shapes are compiled.

    Args:
      tight: pad on the right alone, for models that read prompt and completion as one text.
      bucket: the padded length of a part.
      learned: tokens of each completion that `completion_mask` has, all where it is None.
      shape: padded lengths of prompts (`tight`: of prompts with completions) and of completions, if not their buckets.
    """
    rows = rows or len(prompts)
    before, after = shape or lengths(prompts, completions, tight, bucket)
    if tight:
        length = before
        first = np.array([len(prompt) for prompt in prompts] + [1] * (rows - len(prompts)), np.int32)
        lefts = [0] * len(prompts)
    else:
        length, first, lefts = before + after, None, [before - len(prompt) for prompt in prompts]
    tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    masks, chosen = np.zeros((rows, after), bool), learned or [None] * len(prompts)
    for row, (left, prompt, completion) in enumerate(zip(lefts, prompts, completions, strict=True)):
        ids = [*prompt, *completion]
        tokens[row, left : left + len(ids)] = ids
        mask[row, left : left + len(ids)] = True
        masks[row, : len(completion)] = True if chosen[row] is None else chosen[row]
    return Batch(tokens, mask, masks, first)


def lengths(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    tight: bool,
    bucket: Callable[[int], int] = bucket_length,
) -> tuple[int, int]:
    """Returns the shape that `make_batch` pads to; its arguments are of that function."""
    after = bucket(max(map(len, completions)))
    if tight:
        return padded_length(max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))), after
    return bucket(max(map(len, prompts))), after


def fed_length(prompt: Sequence[int], completion: Sequence[int]) -> int:
    """Returns how many of these tokens a decoder-only model is fed, see `Batch.fed`."""
    return len(prompt) + max(0, len(completion) - 1)
