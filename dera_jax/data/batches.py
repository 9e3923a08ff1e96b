"""Prompts with given completions, as the rectangular arrays that teacher forcing takes."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from dera_jax.tokenizer import bucket_length, padded_length

Array = jax.Array | np.ndarray
"""Made on the host; under jit, traced."""
WINDOW = 16
"""Batches that are sorted by length together."""
FEW = 4096
"""Examples of which NumPy shuffles all; grain looks one up without the rest, but slowly among few."""


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
) -> Batch:
    """Returns a batch of `rows` rows (default: as many as prompts), the rest of them empty.

    Both parts are padded to the bucket of their longest, so that few shapes are compiled.

    Args:
      tight: pad on the right alone, for models that read prompt and completion as one text.
      bucket: the padded length of a part.
      learned: tokens of each completion that `completion_mask` has, all where it is None.
    """
    rows = rows or len(prompts)
    after = bucket(max(map(len, completions)))
    if tight:
        length = padded_length(max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)))
        first = np.array([len(prompt) for prompt in prompts] + [1] * (rows - len(prompts)), np.int32)
        lefts = [0] * len(prompts)
    else:
        before = bucket(max(map(len, prompts)))
        length, first, lefts = before + after, None, [before - len(prompt) for prompt in prompts]
    tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    masks, chosen = np.zeros((rows, after), bool), learned or [None] * len(prompts)
    for row, (left, prompt, completion) in enumerate(zip(lefts, prompts, completions, strict=True)):
        ids = [*prompt, *completion]
        tokens[row, left : left + len(ids)] = ids
        mask[row, left : left + len(ids)] = True
        masks[row, : len(completion)] = True if chosen[row] is None else chosen[row]
    return Batch(tokens, mask, masks, first)


def fed_length(prompt: Sequence[int], completion: Sequence[int]) -> int:
    """Returns how many of these tokens a decoder-only model is fed, see `Batch.fed`."""
    return len(prompt) + max(0, len(completion) - 1)


def shuffled(
    count: int,
    batch_size: int,
    seed: int,
    lengths: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], np.ndarray]:
    """Returns the positions that a step takes: every epoch a new order, each position once in it.

    What a step takes depends on the step alone, so a run resumes at any. The batches of all processes,
    one behind the other, are the batch of one process: their number changes nothing.

    Args:
      batch_size: of all processes together.
      seed: ≥ 0.
      lengths: of every position. Batches are then of similar lengths, which pads less: an epoch's batches,
        `WINDOW` at a time, are sorted by length and taken in a random order.

    Raises:
      ValueError: nothing to take, or a batch that the processes cannot share evenly.
    """
    if count < 1 or batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"expected examples, and a batch size that is a multiple of {process_count} processes; "
            f"found {count} examples and a batch size of {batch_size}"
        )
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    order = _order(count, seed)

    def batch(step: int) -> np.ndarray:
        return np.array([order(index) for index in range(step * batch_size, (step + 1) * batch_size)])

    @lru_cache(maxsize=2)
    def window(first: int, end: int) -> np.ndarray:
        taken = np.concatenate([batch(step) for step in range(first, end)])
        taken = taken[np.argsort(np.asarray(lengths)[taken], kind="stable")]
        return np.random.default_rng([seed, first]).permutation(taken.reshape(end - first, batch_size))

    def positions(step: int) -> np.ndarray:
        epoch = step * batch_size // count
        # The steps that lie in this epoch as a whole; one across its end stays as it is, since a
        # position may come in it twice.
        start, stop = -(-epoch * count // batch_size), (epoch + 1) * count // batch_size
        if lengths is None or not start <= step < stop:
            return batch(step)[mine]
        first = step - (step - start) % WINDOW
        return window(first, min(first + WINDOW, stop))[step - first][mine]

    return positions


def _order(count: int, seed: int) -> Callable[[int], int]:
    """Returns the positions of all epochs, one behind the other."""
    if count < FEW:
        epochs = lru_cache(maxsize=64)(lambda e: np.random.default_rng([seed, e]).permutation(count))
        return lambda index: int(epochs(index // count)[index % count])
    # Seed and number of the epoch are added there: neighbouring seeds would share most of their orders.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(count).shuffle(seed=spread).repeat().__getitem__
