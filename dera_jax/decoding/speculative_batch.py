"""A running batch whose rows are drafted ahead and checked: what `speculation` does, chunk by chunk on the host."""

import time
from collections.abc import Sequence
from functools import lru_cache

import jax
import numpy as np

from dera_jax import models
from dera_jax.decoding import device_loop, speculation
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.drafters import NGRAM, Choice, Paces, acceptance_bounds
from dera_jax.decoding.history import History, matches
from dera_jax.decoding.request import Shape
from dera_jax.decoding.room import CHUNK, room_for
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.realign import strength_weights
from dera_jax.rules.rule import Rule, is_mixture, linear_rule, named


class SpeculativeBatch(Batch):
    """Slots whose rows advance by several tokens in a pass, each by its own number."""

    def __init__(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        *,
        draft: str,
        length: int,
    ):
        """Starts without requests.

        Args:
          draft: auto, reference, aligned or ngram.
          length: tokens drafted in each pass; ≥ 1.

        Raises:
          ValueError: the rule or the models have no such endpoint.
        """
        check_drafter(draft, rule, len(policies))
        self.draft, self.length = draft, length
        self.passes = -(-CHUNK // (length + 1))
        self.chunk = max(CHUNK, self.passes * (length + 1))
        super().__init__(policies, shape, config, rows, rule, usage)
        self.kept: np.ndarray | None = None
        """Of the last chunk, which of what was drawn counts [steps, rows]; None: all of it."""
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(policy.params)) for policy in policies]
        shares = [size / sum(sizes) for size in sizes]
        paces = _paces(self.configs, self.rows, rule, length, self.mesh)
        self.choice = Choice(paces, shares, length, self.passes)
        self.models = range(len(policies)) if len(self.configs) == len(policies) and is_mixture(rule) else ()
        """That may draft: members of one model run together as fast as one of them alone."""

    def _reads_together(self) -> bool:
        return self.draft not in ("reference", "aligned")

    def run_chunk(self) -> device_loop.Drawn:
        if self.draft != "auto":
            return self._run_drafted(self._asked())
        left = self._seconds_left()
        drafted, drafter = self.choice.next(left)
        start = time.perf_counter()
        drawn = self._run_drafted(drafter) if drafted else self._run_plain()
        paces = self.choice.paces
        (paces.drafted[drafter] if drafted else paces.plain).add(time.perf_counter() - start)
        if any(self.slots) and self.choice.may_draft(left):
            self.choice.expect([(drafter, self._kept_share())] if drafted else self._expected(drawn))
        return drawn

    def _asked(self) -> int | None:
        """Returns the number of the model that was asked to draft; of several aligned ones, that of most weight."""
        if self.draft == "ngram":
            return NGRAM
        if self.draft == "reference":
            return 0
        strengths = [strength_weights(slot.request.lambda_) for slot in self.slots if slot is not None]
        return 1 + int(np.argmax(np.sum(strengths, axis=0)[1:])) if strengths else 1

    def _run_plain(self) -> device_loop.Drawn:
        self.kept = None
        return super().run_chunk()

    def _run_drafted(self, drafter: int | None) -> device_loop.Drawn:
        self.state, drawn, kept = speculation.decode_drafted_chunk(
            self.configs, self.params, self.state, self._history() if drafter is NGRAM else None,
            self._sampling(), self.eos, rule=self.rule, drafter=drafter, length=self.length, passes=self.passes,
            mesh=self.mesh,
        )  # fmt: skip
        drawn, self.kept = jax.device_get((drawn, kept))
        self._count()
        return drawn

    def _count(self) -> None:
        """Adds the chunk to the usage."""
        tokens, kept = self._kept_of_working().sum(), self._kept_drafts().sum()
        working = max(1, len(self._working()))
        self.usage.slot_steps += round(self.rows * tokens / working)
        self.usage.drafts += self._checked()
        self.usage.drafts_accepted += int(kept)

    def _kept_drafts(self) -> np.ndarray:
        """Returns how many drafts were kept in each pass of each row at work [passes, rows]."""
        return self._kept_of_working().reshape(self.passes, self.length + 1, -1).sum(axis=1) - 1

    def _checked(self) -> int:
        """Returns how many drafts were checked: those that were kept, and the first behind them."""
        return int(np.minimum(self._kept_drafts() + 1, self.length).sum())

    def _kept_share(self) -> float:
        return float(self._kept_drafts().sum() / self._checked())

    def _working(self) -> list[int]:
        return [number for number, slot in enumerate(self.slots) if slot is not None]

    def _kept_of_working(self) -> np.ndarray:
        assert self.kept is not None
        return self.kept[:, self._working()]

    def _column(self, drawn: device_loop.Drawn, row: int) -> device_loop.Drawn:
        column = super()._column(drawn, row)
        if self.kept is None:
            return column
        return jax.tree.map(lambda a: a[self.kept[:, row]], column)

    def _history(self) -> History:
        rows = [[*self._prompt(slot), *slot.tokens] if slot else [0] for slot in self.slots]
        return History.of(rows, room_for(max(map(len, rows)) + self.chunk))

    def _prompt(self, slot) -> Sequence[int]:
        return slot.request.prompt.tokens[-1]

    def _seconds_left(self) -> float:
        """Returns how long plain chunks would take for all that may still be drawn."""
        longest = [self._config(request).max_new_tokens for request in self.queue]
        working = [
            self._config(slot.request).max_new_tokens - len(slot.tokens) for slot in self.slots if slot
        ]
        return (sum(longest) + sum(working)) / self.rows * self.choice.paces.plain.best / CHUNK

    def _expected(self, drawn: device_loop.Drawn) -> list[tuple[int | None, float]]:
        """Returns of a plain chunk what each drafter would have kept."""
        working = self._working()
        record = jax.tree.map(lambda a: a[:, working], drawn.record)
        bounds = [acceptance_bounds(record.logprob, record.model_logprobs[..., m]) for m in self.models]
        slots = [slot for slot in self.slots if slot is not None]
        tokens = drawn.token[:, working].T.tolist()
        found = [
            matches([*self._prompt(slot), *slot.tokens], new) for slot, new in zip(slots, tokens, strict=True)
        ]
        ngram = sum(found) / (len(found) * CHUNK)
        return [*((m, sum(each) / 2) for m, each in zip(self.models, bounds, strict=True)), (NGRAM, ngram)]


@lru_cache(maxsize=64)
def _paces(configs: tuple[models.ModelConfig, ...], rows: int, rule: Rule, length: int, mesh) -> Paces:
    """Returns what is known of the chunks of such a batch: the next batch need not find it out anew."""
    return Paces()


def check_drafter(draft: str, rule: Rule, models: int) -> None:
    """Raises ValueError where a model is to draft that the rule, or the models, do not have.

    Args:
      models: how many there are.
    """
    if draft in ("reference", "aligned") and not is_mixture(rule):
        raise ValueError(
            f"draft: rule {named(rule).name} is at no strength one of the models; expected ngram, auto or none, "
            f"got {draft}"
        )
    if draft == "aligned" and models < 2:
        raise ValueError("draft: expected reference, ngram, auto or none for one model alone, got aligned")
