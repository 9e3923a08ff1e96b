"""Several examples in one row: no padding between them, and none sees another."""

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.data.examples import Example
from dera_jax.training.supervised import Source


class PackedBatch(NamedTuple):
    """Rows of whole examples one behind another.

    Example: "a → b c" and "d → e" in a row of 6: tokens `[a, b, c, d, e, ·]`, segments
    `[1, 1, 1, 2, 2, 0]`, learned `[0, 1, 1, 0, 1, 0]`.
    """

    tokens: Int[Array | np.ndarray, "rows length"]
    segments: Int[Array | np.ndarray, "rows length"]
    """Number of the example in its row, from 1; 0 is padding."""
    learned: Bool[Array | np.ndarray, "rows length"]

    @property
    def mask(self) -> Bool[Array | np.ndarray, "rows length"]:
        """Which tokens are real."""
        return self.segments > 0


def pack(examples: Sequence[Example], length: int) -> list[list[Example]]:
    """Returns examples in rows of at most `length` tokens, few of them: each goes where least room is left.

    Best fit, the longest first; ties in the order given.
    """
    rows: list[list[Example]] = []
    # Rows by the room that is left in them, and the rooms that there are, ascending.
    by_room: dict[int, deque[list[Example]]] = defaultdict(deque)
    rooms: list[int] = []
    for example in sorted(examples, key=_size, reverse=True):
        place = bisect_left(rooms, _size(example))
        if place == len(rooms):
            row, room = [], length
            rows.append(row)
        else:
            room = rooms[place]
            row = by_room[room].popleft()
            if not by_room[room]:
                rooms.pop(place)
        row.append(example)
        left = room - _size(example)
        if not by_room[left]:
            insort(rooms, left)
        by_room[left].append(row)
    return rows


def packed_source(examples: Sequence[Example], length: int) -> Source:
    """Returns batches of packed rows of `length` tokens."""
    packed = pack(examples, length)

    def make(positions: Sequence[int], rows: int) -> PackedBatch:
        tokens, segments = (np.zeros((rows, length), np.int32) for _ in range(2))
        learned = np.zeros((rows, length), bool)
        for row, position in enumerate(positions):
            start = 0
            for number, example in enumerate(packed[position], start=1):
                end = start + _size(example)
                tokens[row, start:end] = example.prompt + example.completion
                segments[row, start:end] = number
                said = True if example.learned is None else example.learned
                learned[row, start + len(example.prompt) : end] = said
                start = end
        return PackedBatch(tokens, segments, learned)

    return Source(len(packed), make)


def packed_logprobs(
    config: models.ModelConfig, params: PyTree, batch: PackedBatch
) -> Float[Array, "rows length"]:
    """Returns log π of each learned token given those of its example before it; 0 elsewhere."""
    tokens, segments = jnp.asarray(batch.tokens), jnp.asarray(batch.segments)
    logits = models.bind(config, params).packed_logits(tokens, segments)[:, :-1]
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    logprobs = jnp.pad(chosen - jax.nn.logsumexp(logits, axis=-1), ((0, 0), (1, 0)))
    return jnp.where(batch.learned, logprobs, 0.0)


def _size(example: Example) -> int:
    return len(example.prompt) + len(example.completion)
