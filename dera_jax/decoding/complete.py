"""Requests to completions, grouped by what one batch can decode."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from dera_jax.decoding.batch import CHUNK, Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule


def complete(
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
    for _, group in groupby(_in_order(requests), key=_shape):
        yield from Batch(policies, list(group), config, rows, rule, usage or Usage()).run()


def warm_up(
    policies: Sequence[Policy],
    requests: Sequence[Request],
    config: DecodeConfig,
    rows: int,
    rule: Rule = linear_rule,
    *,
    full: bool = False,
) -> tuple[float, float]:
    """Compiles what `complete` will begin with for prompts like the requests'.

    Args:
      requests: the longest of each shape of prompts.
      full: with caches that have room for the longest completion.

    Returns:
      The seconds that compiling took, and the seconds of one step of a full batch after that.
    """

    def run_once(group: Sequence[Request]) -> float:
        start = time.perf_counter()
        batch = Batch(policies, [group[n % len(group)] for n in range(max(rows, len(group)))], config, rows,
                       rule, Usage())  # fmt: skip
        batch.fill()
        while batch.queue:  # of more shapes than rows
            batch.prefill(batch.queue.popleft().prompt)
        if full:  # behind filling, which fits them to what is there
            batch.fit_caches(batch.most)
        batch.run_chunk()
        return time.perf_counter() - start

    compiling = step = 0.0
    for _, group in groupby(_in_order(requests), key=_shape):
        same = list(group)
        # A batch of its own each time, gone before the next: two at once might not fit.
        first, second = run_once(same), run_once(same)
        compiling, step = compiling + first - second, max(step, second / CHUNK)
    return compiling, step


def _in_order(requests: Sequence[Request]) -> list[Request]:
    """Returns requests batch by batch, in it short prompts first, which keeps caches short; else in their order."""
    return sorted(requests, key=lambda request: (_shape(request), request.prompt.buckets))


def _shape(request: Request) -> tuple:
    """Returns what all requests of a batch have in common: all prompts may differ in length but encoders'."""
    buckets, slots = request.prompt.buckets, request.prompt.slots
    encoded = tuple(0 if taken else bucket for bucket, taken in zip(buckets, map(bool, slots), strict=True))
    return len(set(buckets)) == 1, encoded
