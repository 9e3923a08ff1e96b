"""What a grid of prompts, samples and strengths lacks, and in which words."""

from collections.abc import Collection, Hashable, Mapping, Sequence

from dera_jax.strengths import Strength, format_strength

Cell = tuple[Hashable, int, int]
"""prompt_id, sample and turn of a completion."""


def cell_of(row: dict) -> Cell:
    """Returns where a row stands among those of its strength."""
    return row["prompt_id"], row["sample"], row.get("turn", 0)


def cell_order(cell: Cell) -> tuple:
    """Returns what cells are sorted by: numbers come before strings."""
    prompt_id, *rest = cell
    return isinstance(prompt_id, str), prompt_id, *rest


def find_missing(
    there: Mapping[Strength, Collection[Cell]], expected: Collection[Cell]
) -> list[tuple[Strength, Cell]]:
    """Returns the cells that are expected at every strength and not there."""
    return [
        (strength, cell)
        for strength, cells in there.items()
        for cell in sorted(set(expected) - set(cells), key=cell_order)
    ]


def tell_cells(
    cells: Sequence[tuple[Strength, Cell]], one: str = "is missing", several: str = "are missing"
) -> str:
    """Returns how many cells there are and which is the first, in words.

    >>> tell_cells([((0.5,), ("p3", 1, 0)), ((2.0,), ("p4", 0, 0))])
    "2 completions are missing, the first at λ = 0.5: prompt 'p3', sample 1"
    """
    strength, (prompt_id, sample, turn) = cells[0]
    told = f"{len(cells)} completions {several}" if len(cells) > 1 else f"1 completion {one}"
    later = f", turn {turn + 1}" if turn else ""
    return (
        f"{told}, the first at λ = {format_strength(strength)}: prompt {prompt_id!r}, sample {sample}{later}"
    )
