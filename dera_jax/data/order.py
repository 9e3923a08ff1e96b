"""The order in which a training sees its data."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import grain
import numpy as np

WINDOW = 16
"""Batches that are sorted by length together."""
FEW = 4096
"""Examples of which NumPy shuffles all; grain looks one up without the rest, but slowly among few."""


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
