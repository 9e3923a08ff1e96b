"""Exact draws for 0 ≤ λ ≤ 1: completions of the realigned policy, of which each is kept with its own probability.

With zₜ = Σ_v π_ref(v)^{1−λ} π_al(v)^λ, a completion y of the mixture q has

  q(y) Πₜ zₜ = π_ref(y)^{1−λ} π_al(y)^λ,      Πₜ zₜ ≤ 1,

so those kept with probability Π zₜ follow the response-level optimum p(y) ∝ π_ref(y)^{1−λ} π_al(y)^λ (Eq. 5), and the
share of those kept is its normalizer Z(λ). The uniform number that decides is drawn first: a completion is given up at
the first token where Σ log zₜ is below its logarithm, which changes nothing but the price.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dera_jax.common.checks import check_count
from dera_jax.decoding import device_loop
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request, Shape, Tried
from dera_jax.devices.usage import Usage
from dera_jax.exact.draws import CUT, ExactDraw, check_between
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule
from dera_jax.search.noise import uniform
from dera_jax.strengths import Strength


@dataclass(frozen=True, kw_only=True)
class Rejection(ExactDraw):
    """The first of a request's completions that is accepted, each with probability Π z."""

    max_tries: int = 1000
    """Of a request; if none is accepted the last is kept, and said to be no exact draw."""
    method = "exact"

    def __post_init__(self):
        super().__post_init__()
        check_count("max_tries", self.max_tries, most=10**6)

    def check_settings(self, strengths: Sequence[Strength], config: DecodeConfig, rule: Rule) -> None:
        super().check_settings(strengths, config, rule)
        check_between(self.method, strengths, "particles:N")

    def batch(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        strengths: int = 1,
    ) -> "RejectionBatch":
        """Returns the batch of the draw; see `MixtureDraw.batch`."""
        return RejectionBatch(policies, shape, config, rows, rule, usage, draw=self)


@dataclass
class _Asked:
    """A request, and what has become of its tries."""

    request: Request
    tries: list[Request] = field(default_factory=list)
    """In their order, each an attempt of the request."""
    ended: dict[int, "_Ended"] = field(default_factory=dict)
    """By number."""

    @property
    def open(self) -> int:
        """Tries that have not ended."""
        return len(self.tries) - len(self.ended)


@dataclass(frozen=True)
class _Ended:
    """What a try came to."""

    tokens: int
    cut: bool
    completion: Completion | None
    """None: it was given up."""
    accepted: bool = True
    log_weight: float | None = None
    """Of a completion that was not accepted, if its weight is not 0."""


class RejectionBatch(Batch):
    """A running batch whose rows are tries; each request yields the first of its tries that is accepted.

    A request has one try at a time, or several where rows would be free otherwise; which of them it yields does not
    depend on that.
    """

    def __init__(self, *given, draw: Rejection):
        """Starts without requests; see `Batch`."""
        super().__init__(*given)
        self.draw, self.max_tries = draw, draw.max_tries
        self.asked: dict[int, _Asked] = {}
        """By the identity of each try that has not ended."""

    def submit(self, requests: Sequence[Request]) -> None:
        super().submit([self._next_try(_Asked(request)) for request in requests])

    def _next_try(self, asked: _Asked) -> Request:
        number = asked.request.attempt * self.max_tries + len(asked.tries)
        asked.tries.append(replace(asked.request, attempt=number))
        self.asked[id(asked.tries[-1])] = asked
        return asked.tries[-1]

    def _stop_work(self, request: Request) -> bool:
        for asked in self.asked.values():
            if asked.request is request:
                self._drop(asked, 0)
                return True
        return False

    def _drop(self, asked: _Asked, first: int) -> None:
        """Takes a request's tries from the number `first` on out of the batch."""
        dropped = {id(each) for each in asked.tries[first:]}
        if not dropped:
            return
        for each in dropped:
            self.asked.pop(each, None)
        self.slots = [None if slot and id(slot.request) in dropped else slot for slot in self.slots]
        self.queue = type(self.queue)(each for each in self.queue if id(each) not in dropped)

    def fill(self) -> None:
        """Gives rows to waiting tries; those that are left to further tries of requests that are at work."""
        free = sum(slot is None for slot in self.slots)
        while len(self.queue) < free and (asked := self._least_tried()):
            self.queue.append(self._next_try(asked))
        super().fill()

    def _least_tried(self) -> _Asked | None:
        """Returns the request at work with the fewest open tries, if another one may be of use."""
        found = {id(asked): asked for asked in self.asked.values()}.values()
        wanted = [
            asked for asked in found
            if len(asked.tries) < self.max_tries and not any(e.completion for e in asked.ended.values())
        ]  # fmt: skip
        return min(wanted, key=lambda asked: asked.open, default=None)

    def _take_finished(self, drawn: device_loop.Drawn) -> Iterator[Completion]:
        for number, slot in enumerate(self.slots):
            if slot is None or self.slots[number] is None:
                continue
            searched = len(slot.tokens)
            column = self._column(drawn, number)
            slot.tokens.extend(column.token.tolist())
            slot.drawn.append(column)
            if found := self._outcome(slot, searched):
                self.slots[number] = None
                self.usage.tokens += found.tokens
                self.usage.row_tokens += found.tokens
                asked = self.asked.pop(id(slot.request))
                asked.ended[self._number(asked, slot.request)] = found
                if completion := self._answer(asked):
                    yield completion

    def _number(self, asked: _Asked, request: Request) -> int:
        return next(n for n, each in enumerate(asked.tries) if each is request)

    def _outcome(self, slot, searched: int) -> _Ended | None:
        """Returns what a try has come to, if it has; `searched` of its tokens were looked at before."""
        completion = self._finished(slot, searched)
        chunks = [piece.record.log_normalizer for piece in slot.drawn]
        weights = np.concatenate(chunks).astype(np.float64).cumsum()
        if completion:
            weights = weights[: len(completion.tokens)]
        asked = self.asked[id(slot.request)]
        last = self._number(asked, slot.request) + 1 == self.max_tries
        limit = np.log(uniform(slot.request, self.config, "accept"))
        below = np.flatnonzero(weights < limit)
        cut = completion is not None and completion.finish_reason == CUT
        no_member = cut and self.draw.limit_means == "ended"
        refused = below.size > 0 or no_member
        if last and completion:  # kept whatever it is
            weight = float(weights[-1]) if refused and not no_member else None
            return _Ended(len(weights), cut, completion, not refused, weight)
        if below.size and not last:
            return _Ended(int(below[0]) + 1, False, None)
        return completion and _Ended(len(weights), cut, None if refused else completion)

    def _answer(self, asked: _Asked) -> Completion | None:
        """Returns the completion of a request whose first tries have ended and have one; else goes on with it."""
        ended = [asked.ended[n] for n in range(len(asked.tries)) if n in asked.ended]
        first = next((n for n in range(len(asked.tries)) if n not in asked.ended), len(asked.tries))
        kept = next((n for n in range(first) if asked.ended[n].completion), None)
        if kept is not None:
            self._drop(asked, kept + 1)
            done = asked.ended[kept]
            tries = [asked.ended[n] for n in range(kept + 1)]
            told = Tried(
                tries=len(tries),
                tokens=sum(each.tokens for each in tries),
                cut=sum(each.cut for each in tries),
                accepted=done.accepted,
                log_weight=done.log_weight,
            )
            return replace(done.completion, request=asked.request, exact=told)
        if not asked.open and not any(each.completion for each in ended):
            self.queue.appendleft(self._next_try(asked))
        return None
