"""Several rewards of the same completions: one after another, but those that wait for something all at once."""

from collections.abc import Iterator, Sequence
from functools import partial

from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward
from dera_jax.rewards.user import wait_for_all


def call_all(rewards: Sequence[Reward], seen: Sequence[Completions]) -> Iterator[list[float | None]]:
    """Yields what each reward gives the completions that it sees.

    Those that are async functions are waited for together when the first of them has its turn, as in TRL.

    Raises:
      UserCodeError: a reward failed, or gave something else than numbers.
    """
    waiting = [n for n, reward in enumerate(rewards) if hasattr(reward.function, "wait")]
    found: dict[int, list] = {}
    for n, (reward, completions) in enumerate(zip(rewards, seen, strict=True)):
        if len(waiting) > 1 and n == waiting[0]:
            waits = [partial(rewards[each].function.wait, seen[each]) for each in waiting]
            found = dict(zip(waiting, wait_for_all(waits), strict=True))
        yield reward.checked(found[n], completions) if n in found else reward(completions)
