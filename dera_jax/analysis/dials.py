"""Runs that differ in a dial of their rule: found in the folder of them all, and read over the dial."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dera_jax.analysis.summaries import Summary
from dera_jax.common.shown import shown
from dera_jax.strengths import as_strengths, format_strength

Summaries = dict[str, list[Summary]]
"""Of several runs, by name."""


def runs_in(folder: Path) -> list[Path]:
    """Returns the runs in the folder of a sweep over a dial, by its value; the folder itself where it is a run."""
    if not folder.is_dir() or any(folder.glob("rows*.jsonl*")):
        return [folder]
    found = [
        (place, path)
        for path in folder.iterdir()
        if path.is_dir() and any(path.glob("rows*.jsonl*")) and (place := _place(path.name)) is not None
    ]
    return [path for _, path in sorted(found)] or [folder]


def over_dial(runs: Mapping[str, Sequence[Summary]]) -> tuple[str, Summaries]:
    """Returns the dial in which runs differ, and a curve over it for every strength.

    Args:
      runs: summaries by names such as alpha=0.1.

    Raises:
      ValueError: a name without a value, or of another dial.
    """
    dials: list[str] = []
    curves: Summaries = {}
    for name, summaries in runs.items():
        place = _place(name)
        if place is None or place[0] not in (dials or [place[0]]):
            raise ValueError(
                "--over=dial: expected runs of eval.sweep --sweep, in folders such as alpha=0.1, found "
                f"{shown(name, 80)}"
            )
        dials.append(place[0])
        for summary in summaries:
            curve = curves.setdefault(f"λ = {format_strength(summary.lambda_)}", [])
            curve.append(replace(summary, lambda_=(place[1],), beta=None))
    return dials[0], curves


def _place(name: str) -> tuple[str, float] | None:
    """Returns the dial and its value of a folder's name; None of any other."""
    dial, equals, text = name.partition("=")
    try:
        ((value,),) = as_strengths(text) if dial and equals else ((),)
    except ValueError:
        return None
    return dial, value
