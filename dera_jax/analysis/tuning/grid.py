"""A run's rewards and KL as one array: strengths × prompts."""

import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.results.missing import Cell, cell_of, cell_order, find_missing, tell_cells
from dera_jax.strengths import Strength, format_strength

FIELDS = {"kl": "kl_to_reference", "length": "length"}
"""Figures that every row has, beside its rewards, by the field of the row."""
WIN_RATE = "win-rate"


@dataclass(frozen=True)
class Grid:
    """Figures of completions that are there at every strength."""

    strengths: tuple[Strength, ...]
    keys: tuple[Cell, ...]
    """In an order that does not depend on the rows'."""
    figures: dict[str, Float[np.ndarray, "strengths rows"]]

    @property
    def prompts(self) -> list[Hashable]:
        """The prompt_id of each row."""
        return [key[0] for key in self.keys]

    def index(self, strength: Strength) -> int:
        """Returns where a strength stands.

        Raises:
          ValueError: it is not there.
        """
        if strength not in self.strengths:
            there = ", ".join(map(format_strength, self.strengths))
            raise ValueError(f"λ = {format_strength(strength)} is needed and not among the strengths {there}")
        return self.strengths.index(strength)

    def part(self, keep: Callable[[Hashable], bool]) -> "Grid":
        """Returns the rows of those prompts that `keep` says yes to."""
        rows = np.array([keep(prompt) for prompt in self.prompts], bool)
        keys = tuple(key for key, kept in zip(self.keys, rows, strict=True) if kept)
        return Grid(self.strengths, keys, {name: values[:, rows] for name, values in self.figures.items()})


def read_grid(
    groups: Mapping[Strength, Sequence[dict]], names: Sequence[str], where: str, allow_missing: bool = False
) -> tuple[Grid, int]:
    """Returns the figures `names` of the completions that have them at every strength, and how many have not.

    Args:
      groups: rows by strength.
      where: for errors.
      allow_missing: whether there may be such that have not.

    Raises:
      ValueError: a cell is there twice; one is missing, or has no number, and none may.
    """
    strengths = tuple(sorted(groups))
    found = {strength: {cell_of(row): row for row in groups[strength]} for strength in strengths}
    for strength in strengths:
        if len(found[strength]) < len(groups[strength]):
            raise ValueError(
                f"{where}: λ = {format_strength(strength)} has two rows of one prompt and sample"
            )
    keys = sorted({key for rows in found.values() for key in rows}, key=cell_order)
    values = {
        (strength, key): _numbers(found[strength].get(key), names) for strength in strengths for key in keys
    }
    lacking = [cell for cell, numbers in values.items() if None in numbers]
    if lacking and not allow_missing:
        raise ValueError(
            f"{where}: {_told(find_missing(found, keys), lacking, values, names, where)}, "
            "or leave out such prompts' samples with --allow-missing"
        )
    incomplete = {key for _, key in lacking}
    whole = [key for key in keys if key not in incomplete]
    table = np.array([[values[s, key] for key in whole] for s in strengths], np.float64)
    table = table.reshape(len(strengths), len(whole), len(names))
    figures = {name: table[:, :, i] for i, name in enumerate(names)}
    return Grid(strengths, tuple(whole), figures), len(incomplete)


def _numbers(row: dict | None, names: Sequence[str]) -> list[float | None]:
    """Returns a row's figures, None for what it has not."""
    if row is None:
        return [None]
    return [row.get(FIELDS[name]) if name in FIELDS else row.get("rewards", {}).get(name) for name in names]


def _told(
    absent: Sequence[tuple], lacking: Sequence[tuple], values: Mapping, names: Sequence[str], where: str
) -> str:
    """Returns which cells are missing, or, if none is, lack a number; and what to do."""
    if absent:
        return f"{tell_cells(absent)}; complete the run"
    name = shown(names[values[lacking[0]].index(None)], 100)
    told = tell_cells(lacking, f"has no number for {name}", f"have no number for {name}")
    if name in FIELDS:
        return told
    command = f"{spelled('score')} {shlex.quote(where)} {shlex.quote(f'--reward={name}')}"
    return f"{told}; {command} adds it where it was not computed"


def told_names(names: Sequence[str]) -> str:
    """Returns names with commas between, as a message shows them."""
    return ", ".join(shown(name, 100) for name in names)


def reward_names(rows: Sequence[dict]) -> list[str]:
    """Returns the rewards that rows have."""
    return list(dict.fromkeys(name for row in rows for name in row.get("rewards", {})))
