"""Summaries to a figure: rewards, KL and length against the strength, and reward against KL.

Which panels there are, their order, caption and legend; what is in them is drawn by `panels`.
NumPy and matplotlib only, without a display and without `pyplot`'s global state.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dera_jax.analysis.panels import (
    GREY,
    Curve,
    Quantity,
    is_comparable,
    known,
    label_points,
    plot_frontier,
    plot_heat_map,
    plot_over_strength,
)
from dera_jax.analysis.png import png_of
from dera_jax.analysis.summaries import Summary
from dera_jax.analysis.tables import short_names
from dera_jax.common.files import write_bytes
from dera_jax.common.shown import shown

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
MARKERS = "osD^vPX"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.07,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.6,
    "lines.markersize": 5,
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
}
PANEL = (3.5, 2.7)
"""Width and height in inches."""


def plot_sweep(runs: dict[str, list[Summary]], path: str | Path, about: str = "", dial: str = "λ") -> None:
    """Writes a figure of one or several runs as PNG, whole or not at all.

    Panels: each reward (without rewards, log π_aligned/π_reference), KL to the reference and length
    against λ, with 95 % intervals, and as many of the first against the KL as fill the grid, at least
    one. With two aligned models, a heat map over (λ₁, λ₂) of each instead. A line joins strengths that
    were decoded on more than half of a run's prompts; the others are points: their means are over
    prompts that may be different ones.

    Args:
      runs: summaries by the name shown in the legend; see `summarize`.
      path: of the PNG.
      about: begins the caption: what the models are, say.
      dial: what the summaries' `lambda_` is a value of, see `dials.over_dial`.

    Raises:
      ValueError: there is nothing to plot, runs of different numbers of aligned models are
        mixed, or the file cannot be written.
    """
    looks = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=True)
    found = {name: summaries for name, summaries in runs.items() if summaries}
    curves = [Curve(shown(name, 100), found[name], *look) for name, look in zip(found, looks, strict=False)]
    if not curves:
        raise ValueError("there are no rows to plot")
    models = {len(summary.lambda_) for curve in curves for summary in curve.summaries}
    if len(models) > 1:
        raise ValueError(f"cannot plot runs with different numbers of aligned models: {sorted(models)}")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names may hold letters that the font lacks: boxes are drawn for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        drawn = _heat_maps(curves, about) if models == {2} else _panels(curves, about, dial)
        write_bytes(path, png_of(drawn))


def _quantities(curves: Sequence[Curve]) -> list[Quantity]:
    """Returns what to show: rewards (or the log ratio) first, then KL and length."""
    summaries = [summary for curve in curves for summary in curve.summaries]
    names = dict.fromkeys(name for summary in summaries for name in summary.rewards)
    shown = [
        Quantity(f"reward {short}", lambda summary, name=name: summary.rewards.get(name))
        for name, short in short_names(list(names), width=32).items()
    ]
    if not shown and any(summary.log_ratio for summary in summaries):
        shown = [Quantity("log π_aligned / π_reference (nats)", lambda summary: summary.log_ratio)]
    return [
        *shown,
        Quantity("KL to reference (nats)", lambda summary: summary.kl_to_reference),
        Quantity("length (tokens)", lambda summary: summary.length),
    ]


def _figure(
    curves: Sequence[Curve], about: str, rows: int, columns: int, count: int
) -> tuple[Figure, list[Axes]]:
    """Returns a captioned figure with a grid of panels, of which the first `count` are kept."""
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.3))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    caption = "\n".join(filter(None, [about, _caption(curves)]))
    figure.supxlabel(caption, fontsize=7, color=GREY)
    return figure, axes[:count]


def _grid(count: int) -> tuple[int, int]:
    """Returns rows and columns for so many panels."""
    columns = 2 if count == 4 else min(count, 3)
    return math.ceil(count / columns), columns


def _caption(curves: Sequence[Curve]) -> str:
    summaries = [summary for curve in curves for summary in curve.summaries]
    completions = _span([summary.n for summary in summaries], "completion")
    counts = f"n = {completions} of {_span([s.prompts for s in summaries], 'prompt')} per strength"
    models = len(summaries[0].lambda_)
    if models != 2 and not all(math.isnan(s.length.low) for s in summaries):
        counts += "; bands and bars: 95 % intervals, bootstrap over prompts"
    if models == 1 and not all(map(is_comparable, summaries)):
        counts += "\nstrengths of half of the prompts or fewer are not joined"
    return counts


def _span(numbers: Sequence[int], noun: str) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}–{high:,} {noun}s" if low < high else f"{low:,} {noun}{'s' if low > 1 else ''}"


def _panels(curves: Sequence[Curve], about: str, dial: str = "λ") -> Figure:
    """Returns each quantity over the strength; those that are neither KL nor length over the KL, too.

    Of the latter at least one, and more where the grid has room.
    """
    quantities = _quantities(curves)
    *of_interest, _, _ = quantities
    count = len(quantities) + (len(of_interest) > 0)
    rows, columns = _grid(count)
    frontiers = of_interest[: rows * columns - len(quantities)]
    figure, axes = _figure(curves, about, rows, columns, len(quantities) + len(frontiers))
    for ax, quantity in zip(axes, quantities, strict=False):
        plot_over_strength(ax, curves, quantity, dial)
    if len(curves) > 1:
        _add_legend(figure, curves)
    over_kl = list(zip(axes[len(quantities) :], frontiers, strict=True))
    for ax, quantity in over_kl:
        plot_frontier(ax, curves, quantity, dial)
    # Where points and labels meet is known when the layout is.
    figure.draw_without_rendering()
    for ax, quantity in over_kl:
        label_points(ax, curves, quantity)
    return figure


def _add_legend(figure: Figure, curves: Sequence[Curve]) -> None:
    handles = [Line2D([], [], color=curve.color, marker=curve.marker, label=curve.name) for curve in curves]
    longest = max(len(curve.name) for curve in curves)
    # In inches: a letter takes about 0.075, a handle and its spaces 0.6.
    fitting = max(1, int(figure.get_figwidth() / (0.075 * longest + 0.6)))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(fitting, len(curves)))


def _heat_maps(curves: Sequence[Curve], about: str) -> Figure:
    """Returns a heat map of each quantity, in a row for each run if there are several."""
    quantities = _quantities(curves)
    panels = [(curve, quantity) for curve in curves for quantity in quantities]
    grid = _grid(len(quantities)) if len(curves) == 1 else (len(curves), len(quantities))
    figure, axes = _figure(curves, about, *grid, len(panels))
    for ax, (curve, quantity) in zip(axes, panels, strict=True):
        # One scale of colours for all runs.
        values = [value.mean for c in curves for _, value in known(c, quantity)]
        plot_heat_map(ax, curve, quantity, min(values), max(values))
        title = quantity.label if len(curves) == 1 else f"{curve.name}: {quantity.label}"
        ax.set_title(title, fontsize=9 if len(title) < 40 else 7)
    return figure
