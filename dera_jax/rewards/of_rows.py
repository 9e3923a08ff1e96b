"""Rewards of rows that are there already."""

from collections.abc import Callable, Sequence

from dera_jax.common.shown import shown
from dera_jax.results.rows import LARGEST
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward
from dera_jax.rewards.together import call_all

Decode = Callable[[Sequence[int]], str]
Tell = Callable[[str], None]
"""Is told what is waited for; an empty text when that is over."""


def judge(
    rows: list[dict],
    rewards: Sequence[Reward],
    columns: dict,
    decode: Decode,
    tell: Tell = lambda waiting: None,
) -> bool:
    """Adds each reward to those `rows` that lack it; returns whether there was any.

    Args:
      columns: the prompts' other fields, by prompt_id.
      decode: token ids to text.
      tell: a reward may take long.
    """
    asked = [(reward, [row for row in rows if reward.name not in row["rewards"]]) for reward in rewards]
    asked = [(reward, lacking) for reward, lacking in asked if lacking]
    seen = [
        Completions.of(lacking, [columns.get(row["prompt_id"], {}) for row in lacking], decode)
        for _, lacking in asked
    ]
    found = call_all([reward for reward, _ in asked], seen)
    for reward, lacking in asked:
        tell(f"rewards: {shown(reward.name, 60)}")
        values = next(found)
        if any(value is not None and abs(value) > LARGEST for value in values):
            raise ValueError(f"reward {reward.name}: expected numbers of at most {LARGEST:g}")
        for row, value in zip(lacking, values, strict=True):
            row["rewards"][reward.name] = value
    if asked:
        tell("")
    return bool(asked)
