"""Completions by their prompts: sums over each prompt's, and how much of them carries their weight."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from dera_jax.strengths import strength_from_json

Rows = Float[np.ndarray, " rows"]
PerPrompt = Float[np.ndarray, " prompts"]


@dataclass(frozen=True)
class Groups:
    """Where the completions of each prompt stand, one prompt after the other."""

    prompts: tuple[Hashable, ...]
    """Ids, each once."""
    starts: Int[np.ndarray, " prompts"]
    """Where the completions of each prompt begin."""
    count: int
    """Of all completions."""

    @cached_property
    def sizes(self) -> Int[np.ndarray, " prompts"]:
        """Completions of each prompt."""
        return np.diff(np.append(self.starts, self.count))

    @cached_property
    def prompt(self) -> Int[np.ndarray, " rows"]:
        """The number of each completion's prompt."""
        return np.repeat(np.arange(len(self.prompts)), self.sizes)

    def sums(self, values: Rows) -> PerPrompt:
        """Returns the sum over each prompt's completions."""
        return np.add.reduceat(values, self.starts)

    def log_sums(self, log_values: Rows) -> PerPrompt:
        """Returns log Σ exp over each prompt's completions; −∞ where all are."""
        return np.logaddexp.reduceat(log_values, self.starts)

    def effective(self, p: Rows) -> float:
        """Returns how much of a prompt's completions carries the weight, as a mean over prompts.

          (1/Σp² − 1) / (n − 1),

        which is 1 where all weigh the same and 0 where one has all the weight; 0 if no prompt has two.

        Args:
          p: weights that sum to 1 for each prompt.
        """
        several = self.sizes > 1
        if not several.any():
            return 0.0
        size = 1 / self.sums(p**2)
        return float(np.mean((size[several] - 1) / (self.sizes[several] - 1)))


def grouped(rows: Sequence[dict]) -> tuple[Groups, list[int]]:
    """Returns the groups of rows, and the numbers of the rows in the order in which they stand there.

    Completions of a prompt stand in the order in which they were asked for, not that in which they ended: in a file
    the short ones come first.
    """

    def place(number: int) -> tuple:
        row = rows[number]
        prompt = row["prompt_id"]
        return (
            isinstance(prompt, str),
            prompt,
            strength_from_json(row["lambda"]),
            row.get("seed", 0),
            row["sample"],
        )

    order = sorted(range(len(rows)), key=place)
    ids = [rows[n]["prompt_id"] for n in order]
    starts = [n for n in range(len(ids)) if n == 0 or ids[n] != ids[n - 1]]
    return Groups(tuple(ids[n] for n in starts), np.array(starts), len(rows)), order
