"""Prefix caching: what prompts begin with, read once and kept on the device.

An entry is the caches of tokens that were read: of a prompt, or of a conversation so far. A prompt that begins as an
entry does goes on from its caches, cut back to the tokens that both begin with.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from dera_jax import models
from dera_jax.common.checks import check_number
from dera_jax.decoding.state import Prefilled

Tokens = tuple[np.ndarray, ...]
"""Ids, for each model."""


class Owner:
    """The models that made caches: their configurations, and the very arrays of their parameters."""

    def __init__(self, configs: Sequence[models.ModelConfig], params: Sequence[PyTree]):
        """Does not keep the parameters alive."""
        self.configs = tuple(configs)
        self.arrays = [weakref.ref(leaf) for leaf in jax.tree.leaves(tuple(params))]

    def is_same(self, other: "Owner") -> bool:
        """Whether the caches of one can be read by the other."""
        if self.configs != other.configs or len(self.arrays) != len(other.arrays):
            return False
        pairs = ((one(), two()) for one, two in zip(self.arrays, other.arrays, strict=True))
        return all(one is not None and one is two for one, two in pairs)


@dataclass(frozen=True, eq=False)
class Entry:
    """Tokens that were read, with their caches."""

    owner: Owner
    tokens: Tokens
    prefilled: Prefilled
    row: int
    """Which prompt of `prefilled`."""
    slots: int
    """That the caches of all models take."""
    can_be_cut: bool
    """Whether it can be cut back to fewer tokens: no window of a layer has come round."""

    def common(self, tokens: Tokens) -> list[int]:
        """Returns, for each model, how many of `tokens` can be had from the entry's beginning."""
        found = [_common(own, given) for own, given in zip(self.tokens, tokens, strict=True)]
        whole = all(count == len(own) for count, own in zip(found, self.tokens, strict=True))
        return found if whole or self.can_be_cut else [0] * len(found)

    def covers(self, other: "Entry") -> bool:
        """Whether all that the other has can be had from this one."""
        return self.common(other.tokens) == list(map(len, other.tokens))


class PrefixCache:
    """A bounded store of entries, the one used last at the end; it outlives the calls that it is given to."""

    def __init__(self, most: float = 0.25, answers: bool = True):
        """Starts empty.

        Args:
          most: of a batch's caches, the share that entries may take; a single one may be larger.
          answers: whether chats are kept with their answers, for the turn that follows; else prompts alone.
        """
        check_number("most", most, 0.0, 1.0)
        self.most, self.answers = most, answers
        self.entries: list[Entry] = []

    @property
    def slots(self) -> int:
        """Slots of caches that all entries take."""
        return sum(entry.slots for entry in self.entries)

    def find(self, owner: Owner, tokens: Tokens) -> tuple[Entry, list[int]] | None:
        """Returns the entry that has most of the beginning of `tokens`, and how much for each model."""
        own = [entry for entry in reversed(self.entries) if entry.owner.is_same(owner)]
        found = [(entry, entry.common(tokens)) for entry in own]
        return max(found, key=lambda each: sum(each[1]), default=None)

    def use(self, entry: Entry, common: Sequence[int]) -> None:
        """Notes that a prompt goes on from an entry; one with little more is no longer needed beside it."""
        self.entries.remove(entry)
        if 4 * sum(common) < 3 * sum(map(len, entry.tokens)):
            self.entries.append(entry)

    def add(self, entry: Entry, limit: float) -> None:
        """Keeps an entry, in place of those that it covers, and lets go of those used longest ago.

        Args:
          limit: slots that all of them may take.
        """
        own = [other for other in self.entries if other.owner.is_same(entry.owner)]
        if covering := next((other for other in own if other.covers(entry)), None):
            self.entries.remove(covering)
            self.entries.append(covering)
            return
        covered = [other for other in own if entry.covers(other)]
        self.entries = [other for other in self.entries if not any(other is each for each in covered)]
        self.entries.append(entry)
        while len(self.entries) > 1 and self.slots > limit:
            self.entries.pop(0)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Returns how many tokens both begin with."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if differs.size else length
