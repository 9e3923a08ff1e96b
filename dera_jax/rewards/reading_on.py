"""Texts that begin as others did that were read before: of each, only what is new is read.

A search has its candidates judged again and again, every time some tokens longer. A model that judges them keeps the
caches of the texts it has read last; each of the next ones goes on from the one that it has most tokens in common with.
It may have a tokenizer and a chat template of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dera_jax import models
from dera_jax.data.buckets import padded_length
from dera_jax.decoding.branches import can_be_cut
from dera_jax.decoding.room import room_for
from dera_jax.models.caches import empty_cache
from dera_jax.models.reward import RewardConfig
from dera_jax.models.value import ValueConfig

PIECE = 128
"""Tokens of all texts that are read at a time, at most."""


@dataclass
class Known:
    """Texts that were read, with their caches."""

    texts: list[np.ndarray]
    cache: models.KVCache
    """With at least as many rows."""


class Reader:
    """Reads texts with a reward model or a value head, and keeps the caches of the last ones."""

    def __init__(self, config: RewardConfig | ValueConfig, params: PyTree):
        """Has read nothing yet.

        Args:
          config: of a model that reads from left to right, and judges a text by its last token.
        """
        self.config, self.params = config, params
        self.trunk: models.ModelConfig = getattr(config, "trunk", config)
        shape = 1, self.trunk.num_kv_heads, room_for(1), self.trunk.head_dim
        nothing = empty_cache(
            shape, self.trunk.dtype, self.trunk.num_layers, self.trunk.windows, self.trunk.kv_cache
        )
        self.known = Known([np.zeros(0, np.int32)], nothing)
        self.tokens = 0
        """That were read so far."""

    def __call__(
        self, texts: Sequence[Sequence[int]], words: Sequence[int] | None = None
    ) -> Float[np.ndarray, " texts"]:
        """Returns what the model says of each text; a value head, of each text's next word.

        Args:
          texts: token ids, at least one each, within the model's context.
        """
        own = [np.array(text, np.int32) for text in texts]
        if not own:
            return np.zeros(0, np.float32)
        sources, taken = self._sources(own)
        sizes = _pieces(max(len(text) - known for text, known in zip(own, taken, strict=True)))
        room = room_for(max(taken) + sum(sizes))
        rows = 1 << max(len(own) - 1, 0).bit_length()
        cache = take_rows(self.trunk, self.known.cache, _padded(sources, rows), _padded(taken, rows), room)
        found, start = np.zeros(len(own), np.float32), np.array(taken)
        for size in sizes:
            tokens, count = np.zeros((rows, size), np.int32), np.zeros(rows, np.int32)
            for row, text in enumerate(own):
                piece = text[start[row] : start[row] + size]
                count[row], tokens[row, : len(piece)] = len(piece), piece
            said, cache = read_piece(
                self.config,
                self.params,
                cache,
                tokens,
                count,
                None if words is None else _padded(words, rows),
            )
            # Of a text that had ended before, nothing new is said.
            found = np.where(count[: len(own)] > 0, np.asarray(said)[: len(own)], found)
            start += count[: len(own)]
            self.tokens += int(count.sum())
        self.known = Known(own, cache)
        return found

    def _sources(self, texts: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
        """Returns which known text each goes on from, and from how many of its tokens: the last one is always read."""
        sources, taken = [], []
        whole = not can_be_cut([self.trunk], [max(map(len, self.known.texts))])
        for text in texts:
            common = [_common(known, text[:-1]) for known in self.known.texts]
            if whole:
                # A window has come round: what it has let go of cannot be had again.
                common = [
                    n if n == len(known) else 0 for n, known in zip(common, self.known.texts, strict=True)
                ]
            sources.append(int(np.argmax(common)))
            taken.append(max(common))
        return sources, taken


def _common(known: np.ndarray, text: np.ndarray) -> int:
    """Returns how many tokens both begin with."""
    length = min(len(known), len(text))
    differs = np.flatnonzero(known[:length] != text[:length])
    return int(differs[0]) if differs.size else length


def _padded(values: Sequence[int], rows: int) -> Int[np.ndarray, " rows"]:
    return np.array([*values, *[0] * (rows - len(values))], np.int32)


def _pieces(length: int) -> list[int]:
    """Returns how many tokens are read at a time.

    >>> _pieces(20), _pieces(300)
    ([24], [128, 128, 48])
    """
    whole, rest = divmod(length, PIECE)
    return [PIECE] * whole + ([padded_length(rest)] if rest else [])


# Static: config, room. Traced: which rows, and how much of each. One compilation per size of both caches.
@partial(jax.jit, static_argnames=("config", "room"))
def take_rows(
    config: models.ModelConfig,
    cache: models.KVCache,
    sources: Int[Array, " rows"] | Int[np.ndarray, " rows"],
    taken: Int[Array, " rows"] | Int[np.ndarray, " rows"],
    room: int,
) -> models.KVCache:
    """Returns the caches of some rows, each cut back to its first `taken` tokens, with so many slots."""
    own = jax.tree.map(lambda a: a[sources], cache)
    own = models.fit_cache(own, room, config.windows)
    return own._replace(mask=own.mask & (jnp.arange(room) < taken[:, None]), index=taken)


# Static: config. Traced: everything else. One compilation per number of rows, room and size of a piece.
@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def read_piece(
    config: RewardConfig | ValueConfig,
    params: PyTree,
    cache: models.KVCache,
    tokens: Int[Array, "rows length"] | Int[np.ndarray, "rows length"],
    count: Int[Array, " rows"] | Int[np.ndarray, " rows"],
    words: Int[Array, " rows"] | Int[np.ndarray, " rows"] | None,
) -> tuple[Float[Array, " rows"], models.KVCache]:
    """Returns what is said after the first `count` of more tokens of each row, and the cache with these."""
    model = models.bind(config, params)
    rows, length = tokens.shape
    positions = cache.index[:, None] + jnp.arange(length)
    recent = models.no_recent(cache, length, by_row=True)
    hidden, recent = getattr(model, "trunk", model).hidden_steps(tokens, positions, cache, recent)
    last = hidden[jnp.arange(rows), jnp.maximum(count - 1, 0)]
    judged = model.judge(last) if words is None else model.judge(last, words)
    return judged, models.store_recent(cache, recent._replace(count=count))
