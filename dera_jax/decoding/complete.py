"""Requests to completions, grouped by what one batch can decode: the plain draw."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig, DrawConfig
from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.decoding.request import Completion, Request, Shape, shape_of
from dera_jax.decoding.room import CHUNK
from dera_jax.decoding.shared_batch import SharedBatch, most_strengths
from dera_jax.decoding.speculative_batch import SpeculativeBatch
from dera_jax.decoding.value_models import check_values
from dera_jax.devices.processes import several
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule

Draw = Callable[..., Iterator[Completion]]
"""How requests become completions: `complete`, or what draws more and keeps the best.

It is called as `complete` is, and yields one completion of every request, with that very object as its `request`.
One that is an object may say more: its `name`, which rows and folders know it by; its `fingerprint`, the hash of what
it reads beside that; `plain`, the draw of its candidates, and `tries`, how many of them a request has on average;
`check(prompts, aligned)`, which raises ValueError where it cannot answer them.
"""


@dataclass(frozen=True)
class MixtureDraw(DrawConfig):
    """The draw from the realigned policy itself. However its rows are computed, they say the same."""

    prefixes: PrefixCache | None = None
    """Prompts go on from what earlier ones, of this call or another, left there; equal except for rounding."""

    name = "mixture"

    @property
    def shares(self) -> bool:
        """Whether strengths share rows; those that a drafter was asked for do not."""
        return self.share and self.draft in ("none", "auto")

    def __call__(
        self,
        policies: Sequence[Policy],
        requests: Sequence[Request],
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
    ) -> Iterator[Completion]:
        """Yields the completion of every request as it ends. The models take weights (1 − Σλ, λ…).

        Args:
          rows: of a batch.
          usage: is added to.
        """
        yield from in_batches(self, policies, requests, config, rows, rule, usage)

    def batch(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        strengths: int = 1,
    ) -> Batch:
        """Returns the batch of the draw.

        Args:
          strengths: that may share a row, at most.

        Raises:
          ValueError: a value head that the rule does not take, or none where it does.
        """
        check_values(policies, rule)
        given = policies, shape, config, rows, rule, usage
        if strengths > 1 and self.shares:
            return SharedBatch(*given, strengths=strengths)
        # Where several processes run one program, none may choose another by its own clock.
        if self.draft != "none" and not (self.draft == "auto" and several()):
            return SpeculativeBatch(*given, draft=self.draft, length=self.draft_length)
        return Batch(*given)


complete = MixtureDraw()
"""The draw of every program that is not told another."""
complete_unshared = MixtureDraw(share=False)
"""Every request in a row of its own."""


def is_plain(draw: Draw) -> bool:
    """Whether a draw is from the realigned policy itself."""
    return isinstance(draw, MixtureDraw)


def draw_name(draw: Draw) -> str:
    """Returns what rows call a draw: mixture, the name that it has of its own, or module:function."""
    name = getattr(draw, "__qualname__", type(draw).__qualname__)
    return getattr(draw, "name", f"{draw.__module__}:{name}")


def plain_draw(draw: Draw) -> MixtureDraw:
    """Returns the draw from the realigned policy that a draw is, or that it says it is made of."""
    plain = getattr(draw, "plain", draw)
    return plain if isinstance(plain, MixtureDraw) else complete


def check_no_drafts(name: str, plain: Draw) -> None:
    """Raises ValueError where a drafter was asked for, for a draw that has no use of it."""
    if (draft := plain_draw(plain).draft) not in ("none", "auto"):
        raise ValueError(f"{name}: expected no drafts, found --draft={draft}")


def batching_draw(draw: Draw) -> MixtureDraw:
    """Returns the draw whose batches decode: a draw itself where it has batches of its own, else `plain_draw`."""
    return draw if hasattr(draw, "batch") else plain_draw(draw)  # type: ignore[return-value]


def width_of(draw: Draw) -> int:
    """Returns how many rows of a batch a request takes at a time, as far as a draw says."""
    return getattr(draw, "width", 1)


def tries_of(draw: Draw) -> float:
    """Returns how many completions a draw makes for each that it yields, on average, as far as it says."""
    return getattr(draw, "tries", 1)


def in_batches(
    draw: Draw,
    policies: Sequence[Policy],
    requests: Sequence[Request],
    config: DecodeConfig,
    rows: int,
    rule: Rule = linear_rule,
    usage: Usage | None = None,
) -> Iterator[Completion]:
    """Yields the completion of every request, decoded by a draw's own batches, one for each shape of prompts."""
    prefixes = plain_draw(draw).prefixes
    for shape, group in groupby(in_order(requests), key=shape_of):
        same = list(group)
        batch = draw.batch(policies, shape, config, rows, rule, usage, most_strengths(same))
        if prefixes is not None:
            same = batch.pool.keep_prefixes(prefixes, batch.usage).known_first(same)
        yield from run_batch(batch, same)


def run_batch(batch: Batch, requests: Sequence[Request]) -> Iterator[Completion]:
    """Yields the completions of requests that a batch can take."""
    batch.submit(requests)
    while batch.busy:
        yield from batch.step()


def warm_up(
    policies: Sequence[Policy],
    requests: Sequence[Request],
    config: DecodeConfig,
    rows: int,
    rule: Rule = linear_rule,
    *,
    full: bool = False,
    strengths: int = 1,
    draw: MixtureDraw = complete,
) -> tuple[float, float]:
    """Compiles what `complete` will begin with for prompts like the requests'.

    Args:
      requests: the longest of each shape of prompts.
      full: with caches that have room for the longest completion.
      strengths: that may share a row.
      draw: whose batch it is.

    Returns:
      The seconds that compiling took, and the seconds of one step of a full batch after that.
    """

    def run_once(group: Sequence[Request]) -> float:
        start = time.perf_counter()
        batch = draw.batch(policies, shape_of(group[0]), config, rows, rule, None, strengths)
        # As many samples as fill the rows, each by itself.
        count = max(rows, len(group))
        batch.submit([replace(group[n % len(group)], sample=n) for n in range(count)])
        batch.fill()
        while batch.queue:  # of more shapes than rows
            batch.prefill(batch.queue.popleft().prompt)
        if full:  # behind filling, which fits them to what is there
            batch.fit_caches(batch.most)
        batch.run_chunk()
        return time.perf_counter() - start

    steps = getattr(draw, "steps", CHUNK)
    compiling = step = 0.0
    for _, group in groupby(in_order(requests), key=shape_of):
        same = list(group)
        # A batch of its own each time, gone before the next: two at once might not fit.
        first, second = run_once(same), run_once(same)
        compiling, step = compiling + first - second, max(step, second / steps)
    return compiling, step


def in_order(requests: Sequence[Request]) -> list[Request]:
    """Returns requests batch by batch, in it short prompts first, which keeps caches short; else in their order."""
    return sorted(requests, key=lambda request: (shape_of(request), request.prompt.buckets))
