"""Which model, file or code each reward of a run was: one that has changed since judges its rows again.

A run's manifest keeps the hashes as `reward_hashes`, by the rewards' names. They are written once the rows are
of them, so that a run that is killed in between judges again.
"""

from collections.abc import Collection, Sequence

from dera_jax.common.shown import shown
from dera_jax.results.folder import RunFolder
from dera_jax.rewards.registry import Reward

KEY = "reward_hashes"


def forget_outdated(
    folder: RunFolder, rewards: Sequence[Reward], prompts: Collection | None = None
) -> list[str]:
    """Takes out of the rows what rewards gave that have changed since; returns a line for each of these.

    Args:
      rewards: as they are now.
      prompts: ids of those whose rows can be judged again; None: all.

    Raises:
      ValueError: rows of other prompts have been judged by one that has changed.
    """
    told = []
    for reward in rewards:
        rows = [row for row in folder.rows if reward.name in row["rewards"]]
        if not rows or not _changed(folder, reward):
            continue
        left = [row for row in rows if prompts is not None and row["prompt_id"] not in prompts]
        if left:
            raise ValueError(
                f"reward {shown(reward.name, 100)} has changed since it judged the rows there, {len(left)} of them "
                "of prompts that are not asked for: ask for all, or give it another name, NAME=…"
            )
        for row in rows:
            del row["rewards"][reward.name]
        told.append(
            f"reward {shown(reward.name, 100)} has changed: the {len(rows)} rows there are judged again"
        )
    return told


def record(folder: RunFolder, rewards: Sequence[Reward]) -> None:
    """Writes into the manifest what the rewards are, where there is more to each than its name."""
    hashes = {reward.name: reward.fingerprint for reward in rewards if reward.fingerprint}
    if hashes:
        folder.record({KEY: folder.manifest.get(KEY, {}) | hashes})


def _changed(folder: RunFolder, reward: Reward) -> bool:
    before = folder.manifest.get(KEY, {}).get(reward.name)
    return None not in (before, reward.fingerprint) and before != reward.fingerprint
