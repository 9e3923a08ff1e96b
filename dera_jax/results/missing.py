"""What a grid of prompts, samples and strengths lacks, and in which words."""

from collections.abc import Collection, Hashable, Mapping, Sequence

from dera_jax.common.shown import shown
from dera_jax.strengths import PER_PROMPT, Strength, format_strength

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
    strength, cell = cells[0]
    told = f"{len(cells)} completions {several}" if len(cells) > 1 else f"1 completion {one}"
    return f"{told}, the first at λ = {format_strength(strength)}: {_named(*cell)}"


def _named(prompt_id: Hashable, sample: int, turn: int) -> str:
    return f"prompt {shown(repr(prompt_id), 100)}, sample {sample}{f', turn {turn + 1}' if turn else ''}"


def tell_share(count: int, total: int | None, strength: str, cell: Cell | None = None) -> str:
    """Returns how many completions are missing of how many, and which is the first, in words.

    Args:
      total: None is unknown.
      strength: text of the first one's λ; `prompt` is its prompt's own.
      cell: of the first, None where it is unknown.

    >>> tell_share(320, 640, "0.5", (33, 1, 0))
    '320 of 640 completions are missing, the first at λ = 0.5: prompt 33, sample 1'
    """
    of = f" of {total}" if total is not None and count > 1 else ""
    are = "completions are" if count > 1 else "completion is"
    at = [] if strength == PER_PROMPT else [f"at λ = {shown(strength, 60)}"]
    named = [_named(*cell)] if cell else []
    told = " ".join([f"{count}{of} {are} missing, the first", *at])
    return ": ".join([told, *named])
