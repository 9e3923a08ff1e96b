"""Prompts read ahead of their turn: once for all strengths and samples, as many at once as there are devices."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from dera_jax import models
from dera_jax.data import buckets
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.pieces import PIECE, as_prefilled, contexts, read_on
from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.decoding.prefix_reading import PrefixReader
from dera_jax.decoding.state import DecodeState, Prefilled
from dera_jax.devices.usage import Usage

POOL = 8
"""Prefilled prompts kept at a time, at most; they take no more than a quarter of the batch's caches."""


class PromptPool:
    """The caches of the prompts whose requests are filled next."""

    def __init__(
        self,
        configs: tuple[models.ModelConfig, ...],
        params: tuple[PyTree, ...],
        rows: int,
        together: int,
        mesh: Mesh | None,
    ):
        """Starts without a prompt.

        Args:
          rows: of the batch.
          together: prompts that are prefilled at once: as many as leave each device the program of a single one.
        """
        self.configs, self.params, self.mesh, self.together = configs, params, mesh, together
        self.most = max(together, min(POOL, max(1, rows // 4)))
        self.kept: OrderedDict[tuple, tuple[Prefilled, int]] = OrderedDict()
        self.prefixes: PrefixReader | None = None
        """What prompts may go on from, and are kept in."""

    def keep_prefixes(self, store: PrefixCache, usage: Usage) -> PrefixReader:
        """Lets prompts go on from caches in `store`, where they are kept as well, and rows that have ended.

        Args:
          usage: is added to.
        """
        self.prefixes = PrefixReader(store, self.configs, self.params, self.mesh, usage)
        return self.prefixes

    def fit(self, rows: int, slots: Sequence[int]) -> None:
        """Notes how many rows the batch has, and how many slots its caches may come to have."""
        if self.prefixes:
            self.prefixes.fit(rows // self.together, slots)

    def keep_row(
        self, state: DecodeState | None, row: int, prompt: EncodedPrompt, drawn: Sequence[int], count: int
    ) -> None:
        """Keeps the caches of a row that has ended, if prefixes are kept: see `PrefixReader.keep_row`."""
        if self.prefixes and state:
            self.prefixes.keep_row(state.caches, row, prompt, drawn, count)

    def prefill(self, prompt: EncodedPrompt, then: Iterable[EncodedPrompt]) -> tuple[Prefilled, int]:
        """Returns prompts, ready to be continued, and which of them is `prompt`.

        Args:
          then: whose turn comes next, in order.
        """
        # By what is read: later turns of a prompt differ from sample to sample.
        if prompt.tokens not in self.kept:
            self._keep(*(self._continued(prompt) or self._read(prompt, then)))
        return self.kept[prompt.tokens]

    def read_in_pieces(self, prompt: EncodedPrompt) -> Iterator[None]:
        """Reads a prompt, and yields behind every piece but the last: at its end `prefill` has it.

        Args:
          prompt: which no encoder reads.
        """
        if prompt.tokens in self.kept:
            return
        if continued := self._continued(prompt):
            self._keep(*continued)
            return
        first = replace(prompt, tokens=tuple(ids[: PIECE + 1] for ids in prompt.tokens))
        common = [len(context) for context, _ in first.parts]
        start = self._prefilled([first] * self.together)
        yield
        whole = contexts(prompt)
        for caches in read_on(self.configs, self.params, start.caches, 0, common, whole, self.mesh):
            if caches is None:
                yield
        self._keep(as_prefilled(prompt, caches), [prompt])
        if self.prefixes:
            self.prefixes.keep_prompts([prompt], self.kept[prompt.tokens][0])

    def _keep(self, prefilled: Prefilled, prompts: Sequence[EncodedPrompt]) -> None:
        self.kept.update({each.tokens: (prefilled, number) for number, each in enumerate(prompts)})
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)

    def _continued(self, prompt: EncodedPrompt) -> tuple[Prefilled, list[EncodedPrompt]] | None:
        """Returns a prompt that goes on from caches of earlier ones, if any has its beginning."""
        prefilled = self.prefixes and self.prefixes.prefill(prompt)
        return prefilled and (prefilled, [prompt])

    def _read(
        self, prompt: EncodedPrompt, then: Iterable[EncodedPrompt]
    ) -> tuple[Prefilled, list[EncodedPrompt]]:
        """Returns prompts that are read together."""
        prompts = self._next_prompts(prompt, then)
        prefilled = self._prefilled([*prompts, *[prompt] * (self.together - len(prompts))])
        if self.prefixes:
            self.prefixes.keep_prompts(prompts, prefilled)
        return prefilled, prompts

    def _next_prompts(self, prompt: EncodedPrompt, then: Iterable[EncodedPrompt]) -> list[EncodedPrompt]:
        """Returns `prompt` and those of its buckets whose turn comes next, as many as are read together."""
        found = {prompt.tokens: prompt}
        for each in then:
            if len(found) == self.together:
                break
            known = each.tokens in self.kept or (self.prefixes and self.prefixes.has(each))
            if each.buckets == prompt.buckets and not known:
                found.setdefault(each.tokens, each)
        return list(found.values())

    def _prefilled(self, prompts: Sequence[EncodedPrompt]) -> Prefilled:
        def of_model(number: int, bucket: int):
            contexts, last = zip(*(prompt.parts[number] for prompt in prompts), strict=True)
            tokens, mask = zip(*(buckets.pad_left(context, bucket) for context in contexts), strict=True)
            return np.concatenate(tokens), np.concatenate(mask), last

        read = [of_model(number, bucket) for number, bucket in enumerate(prompts[0].buckets)]
        tokens, mask, last = zip(*read, strict=True)
        prefilled = device_loop.prefill_prompts(
            self.configs, self.params, tokens, mask, np.array(last, np.int32), mesh=self.mesh
        )
        if self.mesh:  # on a processor, two computations under way may wait for each other's devices
            jax.block_until_ready(prefilled)
        return prefilled
