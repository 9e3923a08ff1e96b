"""Prompts read ahead of their turn: once for all strengths and samples, as many at once as there are devices."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from dera_jax import models
from dera_jax.data import buckets
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.state import Prefilled

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

    def prefill(self, prompt: EncodedPrompt, then: Iterable[EncodedPrompt]) -> tuple[Prefilled, int]:
        """Returns prompts, ready to be continued, and which of them is `prompt`.

        Args:
          then: whose turn comes next, in order.
        """
        # By what is read: later turns of a prompt differ from sample to sample.
        if prompt.tokens not in self.kept:
            prompts = self._next_prompts(prompt, then)
            prefilled = self._prefilled([*prompts, *[prompt] * (self.together - len(prompts))])
            self.kept.update({each.tokens: (prefilled, number) for number, each in enumerate(prompts)})
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)
        return self.kept[prompt.tokens]

    def _next_prompts(self, prompt: EncodedPrompt, then: Iterable[EncodedPrompt]) -> list[EncodedPrompt]:
        """Returns `prompt` and those of its buckets whose turn comes next, as many as are read together."""
        found = {prompt.tokens: prompt}
        for each in then:
            if len(found) == self.together:
                break
            if each.buckets == prompt.buckets and each.tokens not in self.kept:
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
