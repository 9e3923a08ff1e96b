"""Prompts that go on from caches of a prefix cache: only what is new in them is read."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from dera_jax import models
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding.branches import can_be_cut
from dera_jax.decoding.pieces import as_prefilled, contexts, cut, read_on, rooms_of
from dera_jax.decoding.prefix_cache import Entry, Owner, PrefixCache, Tokens
from dera_jax.decoding.request import Request
from dera_jax.decoding.state import Prefilled, by_stream
from dera_jax.devices.usage import Usage

LEAST = models.BLOCK
"""Tokens that a prompt must have from caches, at least, in each model."""


class PrefixReader:
    """The side of a prefix cache that belongs to one batch: its models, and what there is room for."""

    def __init__(
        self,
        store: PrefixCache,
        configs: tuple[models.ModelConfig, ...],
        params: tuple[PyTree, ...],
        mesh: Mesh | None,
        usage: Usage,
    ):
        """Reads and keeps nothing yet.

        Args:
          usage: is added to.
        """
        self.store, self.configs, self.params, self.mesh, self.usage = store, configs, params, mesh, usage
        self.owner = Owner(configs, params)
        self.counts = [config.members for config in configs]
        self.encoded = any(config.encoder_decoder for config in configs)
        """Whether an encoder reads prompts: it reads each as a whole."""
        self.limit = 0.0
        """Slots that all entries may take."""

    def fit(self, rows: int, slots: Sequence[int]) -> None:
        """Notes how large the batch's caches may become.

        Args:
          rows: on each device.
          slots: of each cache.
        """
        self.limit = self.store.most * rows * self._slots(slots)

    def has(self, prompt: EncodedPrompt) -> bool:
        """Whether a prompt would go on from caches."""
        return self._find(prompt) is not None

    def known_first(self, requests: Sequence[Request]) -> list[Request]:
        """Returns requests, those first whose prompts would go on from caches, while these are there."""
        known: dict[tuple, bool] = {}
        for request in requests if self.store.entries else ():
            if request.prompt.tokens not in known:
                known[request.prompt.tokens] = self.has(request.prompt)
        return sorted(requests, key=lambda request: not known.get(request.prompt.tokens, False))

    def prefill(self, prompt: EncodedPrompt) -> Prefilled | None:
        """Returns a prompt, ready to be continued, what is new in it read; None: no entry is worth it."""
        found = self._find(prompt)
        if found is None:
            return None
        entry, common = found
        self.store.use(entry, common)
        tokens = contexts(prompt)
        caches = self._read(entry, common, tokens)
        prefilled = as_prefilled(prompt, caches)
        self._add(tokens, prefilled, 0)
        self._count(sum(map(len, tokens)) - sum(common), sum(common))
        return prefilled

    def keep_prompts(self, prompts: Sequence[EncodedPrompt], prefilled: Prefilled) -> None:
        """Keeps prompts that were read as a whole."""
        for row, prompt in enumerate(prompts):
            tokens = contexts(prompt)
            self._count(sum(map(len, tokens)), 0)
            self._add(tokens, prefilled, row)

    def keep_row(
        self, caches: tuple, row: int, prompt: EncodedPrompt, drawn: Sequence[int], count: int
    ) -> None:
        """Keeps a row of a batch that has ended, if it answers a chat.

        Args:
          caches: of the batch.
          drawn: all tokens that the row has drawn; the last one is not in the caches.
          count: of those that are kept, the first ones.
        """
        if self.encoded or not self.store.answers or prompt.prompt.messages is None:
            return
        read = drawn[: min(count, len(drawn) - 1)]
        there = [len(ids) + len(drawn) - 1 for ids in prompt.tokens]
        if len(read) < len(drawn) - 1 and not self._can_be_cut(there):
            return
        tokens = tuple(np.array([*ids, *read], np.int32) for ids in prompt.tokens)
        lengths = list(map(len, tokens))
        if min(lengths) >= LEAST:
            found = cut(self.configs, caches, row, lengths, rooms_of(self.configs, lengths), self.mesh)
            self._add(tokens, as_prefilled(prompt, found), 0)

    def _find(self, prompt: EncodedPrompt) -> tuple[Entry, list[int]] | None:
        """Returns the entry that a prompt goes on from, and with how many tokens of each model, if it is worth it."""
        if self.encoded:
            return None
        tokens = contexts(prompt)
        found = self.store.find(self.owner, tokens)
        worth = found and min(found[1]) >= LEAST and 2 * sum(found[1]) >= sum(map(len, tokens))
        return found if worth else None

    def _read(self, entry: Entry, common: Sequence[int], tokens: Tokens) -> tuple:
        """Returns the caches of `tokens`, the first `common` of which are the entry's."""
        *_, caches = read_on(
            self.configs, self.params, entry.prefilled.caches, entry.row, common, tokens, self.mesh
        )
        return caches

    def _add(self, tokens: Tokens, prefilled: Prefilled, row: int) -> None:
        lengths = list(map(len, tokens))
        if self.encoded or min(lengths) < LEAST:
            return
        slots = self._slots([cache.mask.shape[1] for cache in prefilled.caches])
        entry = Entry(self.owner, tokens, prefilled, row, slots, self._can_be_cut(lengths))
        self.store.add(entry, self.limit)

    def _can_be_cut(self, lengths: Sequence[int]) -> bool:
        return can_be_cut(self.configs, [max(each) for each in by_stream(lengths, self.counts)])

    def _slots(self, rooms: Sequence[int]) -> int:
        return sum(room * count for room, count in zip(rooms, self.counts, strict=True))

    def _count(self, read: int, cached: int) -> None:
        self.usage.prompt_tokens_read += read
        self.usage.prompt_tokens_cached += cached
