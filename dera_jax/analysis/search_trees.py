"""The tree of a search: every candidate of every decision at its score, and the path that was kept."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dera_jax.analysis.panels import GREY
from dera_jax.analysis.plots import COLORS, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import write_bytes
from dera_jax.common.shown import shown
from dera_jax.strengths import format_strength, strength_from_json

WIDTH, HEIGHT = 9.0, 3.4
"""Of a tree, in inches."""
LETTERS = 150
"""Of a line of text under a tree."""


def plot_trees(rows: Sequence[dict], path: str | Path) -> None:
    """Writes the trees of rows of one prompt as PNG, one below the other, whole or not at all."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Texts may hold letters that the font lacks: boxes are drawn for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH, HEIGHT * len(rows)), layout="constrained")
        for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
            _plot_tree(axes, row)
        write_bytes(Path(path), png_of(figure, 150))


def _plot_tree(axes: Axes, row: dict) -> None:
    trace = row["search"]["trace"]
    winning = _path(trace, row["search"]["score"])
    for number, candidates in enumerate(trace):
        for each in candidates:
            _plot_edge(axes, trace, number, each)
        # Those of equal score lie on one another: the kept ones above.
        for kept, size, color in ((False, 9, "#c0c0c0"), (True, 16, COLORS[0])):
            scores = [each["score"] for each in candidates if each["kept"] is kept]
            axes.scatter([number + 1] * len(scores), scores, s=size, color=color, zorder=3 + kept)
    for number, chosen in enumerate(winning):
        axes.scatter([number + 1], [trace[number][chosen]["score"]], s=28, color=COLORS[1], zorder=5)
    strength = format_strength(strength_from_json(row["lambda"]))
    draw = shown(row.get("draw", "search"), 80)
    told = f"{row['search']['candidates']} candidates; blue: kept, orange: of the completion, grey: given up"
    axes.set_title(f"λ = {strength}, {draw}: {told}", loc="left", fontsize=8)
    axes.set_ylabel("score")
    axes.set_xlim(0.7, len(trace) + 0.3)
    axes.locator_params(axis="x", integer=True)
    text = textwrap.shorten(row["completion"], 3 * LETTERS, placeholder=" …")
    axes.set_xlabel("decision\n" + textwrap.fill(text, LETTERS), fontsize=7.5, color=GREY)


def _plot_edge(axes: Axes, trace: list[list[dict]], number: int, candidate: dict) -> None:
    """Draws the line from what a candidate goes on from."""
    if number:
        start = trace[number - 1][candidate["parent"]]["score"]
        color, width = (COLORS[0], 1.4) if candidate["kept"] else ("#d0d0d0", 0.7)
        axes.plot(
            [number, number + 1],
            [start, candidate["score"]],
            color=color,
            lw=width,
            zorder=1 + candidate["kept"],
        )


def _path(trace: list[list[dict]], score: float) -> list[int]:
    """Returns the number that the winner's own path has in each decision."""
    ended = [number for number, each in enumerate(trace[-1]) if each["kept"] and each["ended"]]
    chosen = next((number for number in ended if trace[-1][number]["score"] == score), ended[0])
    found = [chosen]
    for candidates in trace[:0:-1]:
        found.append(candidates[found[-1]]["parent"])
    return found[::-1]
