"""What all draws from the response-level optimum have in common: which settings have one, and what a limit means."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dera_jax.common.checks import check_choice
from dera_jax.decoding.complete import Draw, check_no_drafts, complete, in_batches
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, is_mixture, linear_rule, named
from dera_jax.search.notation import LIMIT_MEANS
from dera_jax.strengths import Strength, format_strength

CUT = "length"
"""Finish reason of completions that the limit has cut off."""


@dataclass(frozen=True, kw_only=True)
class ExactDraw:
    """A draw from  p(y) ∝ π_ref(y)^{1−λ} π_al(y)^λ  (Eq. 5); subclasses say how."""

    limit_means: str = "ended"
    """One of `notation.LIMIT_MEANS`."""
    plain: Draw = complete
    """Whose prefix cache is used."""

    draft = "none"
    draft_length = 0
    shares = False
    """Its rows are no strengths' together, and draft nothing."""

    def __post_init__(self):
        check_choice("limit_means", self.limit_means, LIMIT_MEANS)

    @property
    def method(self) -> str:
        """What the notation calls it."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What rows call the draw; with what a limit means where that is not the usual."""
        return self.method if self.limit_means == "ended" else f"{self.method}:{self.limit_means}"

    def check(self, prompts: Sequence, aligned: int) -> None:
        """Raises ValueError where the draw is asked for drafts, which it has none of."""
        check_no_drafts(self.method.partition(":")[0], self.plain)

    def check_settings(self, strengths: Sequence[Strength], config: DecodeConfig, rule: Rule) -> None:
        """Raises ValueError where the law at these settings is another than Eq. 5."""
        kind = self.method.partition(":")[0]
        for field, usual in (("temperature", 1.0), ("top_k", None), ("top_p", None)):
            if (found := getattr(config, field)) != usual:
                raise ValueError(
                    f"{kind}: draws from π_ref^(1−λ) π_al^λ, which {field} would change; expected "
                    f"{'no ' + field if usual is None else f'{field} {usual:g}'}, found {found:g}"
                )
        if not is_mixture(rule):
            raise ValueError(f"{kind}: expected the rule linear, found {named(rule).name}")

    def check_requests(self, requests: Sequence[Request], config: DecodeConfig, rule: Rule) -> None:
        """Raises ValueError where the law of a request is another, see `check_settings`."""
        for own in {request.config or config for request in requests}:
            same = [request.lambda_ for request in requests if (request.config or config) == own]
            self.check_settings(list(dict.fromkeys(same)), own, rule)

    def __call__(
        self,
        policies: Sequence[Policy],
        requests: Sequence[Request],
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
    ) -> Iterator[Completion]:
        """Yields the completion of every request as it is found.

        Args:
          rows: of a batch.
          usage: is added to.

        Raises:
          ValueError: see `check_requests`.
        """
        self.check_requests(requests, config, rule)
        yield from self.found(policies, requests, config, rows, rule, usage)

    def found(self, policies, requests, config, rows, rule, usage) -> Iterator[Completion]:
        """Yields the completions of requests that were checked; by default from batches of the draw's own."""
        yield from in_batches(self, policies, requests, config, rows, rule, usage)


def check_between(kind: str, strengths: Sequence[Strength], instead: str) -> None:
    """Raises ValueError where a strength is beyond those between the models."""
    for strength in strengths:
        expected = "0 ≤ λ ≤ 1" if len(strength) == 1 else "every λ ≥ 0, with a sum of at most 1"
        if min(strength) < 0 or sum(strength) > 1:
            raise ValueError(
                f"{kind}: expected {expected}, where Π z ≤ 1, found {format_strength(strength)}; "
                f"{instead} takes any λ"
            )
