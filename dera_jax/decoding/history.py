"""Drafts without a model: what followed the last tokens where they stood before, in the prompt or the completion."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

LONGEST_MATCH = 3
"""Last tokens that are looked for, at most; where they never stood, fewer are."""


class History(NamedTuple):
    """The tokens of rows, prompts included."""

    tokens: Int[Array, "rows room"]
    known: Int[Array, " rows"]
    """How many there are; what lies behind them is no token."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], room: int) -> "History":
        """Returns the history of rows with these tokens, with room for more."""
        tokens = np.zeros((len(rows), room), np.int32)
        for number, each in enumerate(rows):
            tokens[number, : len(each)] = each
        return cls(tokens, np.array(list(map(len, rows)), np.int32))


def look_up(history: History, count: int) -> Int[Array, "count rows"]:
    """Returns what followed the last tokens where most of them stood last, `count` tokens.

    What ran up to the end is taken to go on as it ran: a period. Without a match the last token is repeated.
    """
    tokens, known = history
    places = jnp.arange(tokens.shape[1])
    match, run = jnp.zeros(tokens.shape, jnp.int32), jnp.ones(tokens.shape, jnp.int32)
    for back in range(LONGEST_MATCH):
        last = jnp.take_along_axis(tokens, jnp.maximum(known - 1 - back, 0)[:, None], axis=1)
        behind = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=-1)[:, : tokens.shape[1]]
        run *= (behind == last) & (known > back)[:, None]
        match += run
    # The longest match, of those the latest.
    score = jnp.where(places < known[:, None] - 1, match * tokens.shape[1] + places, -1)
    found = jnp.where(known > 1, jnp.argmax(score, axis=1), -1)
    period = jnp.maximum(known - 1 - found, 1)
    ahead = found + 1 + jnp.arange(count)[:, None] % period
    return jnp.take_along_axis(tokens, jnp.maximum(ahead, 0).T, axis=1).T


def remember(history: History, tokens: Int[Array, "count rows"], kept: Int[Array, " rows"]) -> History:
    """Returns the history with the first `kept` of more tokens of each row."""
    which = jnp.arange(history.tokens.shape[1]) - history.known[:, None]
    new = jnp.take_along_axis(tokens.T, jnp.clip(which, 0, len(tokens) - 1), axis=1)
    there = (which >= 0) & (which < kept[:, None])
    return History(jnp.where(there, new, history.tokens), history.known + kept)


def matches(before: Sequence[int], tokens: Sequence[int]) -> int:
    """Returns how many of `tokens`, each with what stands before it, a look-up would have drafted first."""
    everything = np.array([*before, *tokens])
    ends = np.arange(max(len(before), 2), len(everything))[:, None]
    places = np.arange(len(everything))
    run = np.ones((len(ends), len(everything)), bool)
    match = np.zeros(run.shape, int)
    for back in range(LONGEST_MATCH):
        last = everything[np.maximum(ends - 1 - back, 0)]
        run[:, :back] = False
        run[:, back:] &= everything[: len(everything) - back] == last
        run &= ends > back
        match += run
    found = np.argmax(np.where(places < ends - 1, match * len(everything) + places, -1), axis=1)
    return int(np.sum(everything[found + 1] == everything[ends[:, 0]]))
