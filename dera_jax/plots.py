"""Summaries to a figure: rewards, KL and length against the strength, and reward against KL.

NumPy and matplotlib only, without a display and without `pyplot`'s global state.
"""

import io
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from dera_jax.files import write_bytes
from dera_jax.metrics import Estimate, Summary
from dera_jax.strengths import format_strength
from dera_jax.tables import short_names

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""

MARKERS = "osD^vPX"

GREY = "#707070"

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

ASINH_FROM = 4.0
"""Strengths beyond this are shown on a scale linear near 0 and logarithmic far away."""

COMPASS = np.array([(x, y) for x in (0.7, -0.7) for y in (0.7, -0.7)] + [(0, 1), (0, -1), (1, 0), (-1, 0)])
"""Directions from a point to its label, the best first."""


@dataclass(frozen=True)
class Quantity:
    """What a panel shows of each summary."""

    label: str
    of: Callable[[Summary], Estimate | None]


@dataclass(frozen=True)
class Curve:
    """One run: its name, summaries, colour and marker."""

    name: str
    summaries: list[Summary]
    color: str
    marker: str


def plot_sweep(runs: dict[str, list[Summary]], path: str | Path) -> None:
    """Writes a figure of one or several runs as PNG, whole or not at all.

    Panels: each reward (without rewards, log π_aligned/π_reference), KL to the reference and length
    against λ, with 95 % intervals, and the first of them against the KL. With two aligned models, a
    heat map over (λ₁, λ₂) of each instead.

    Args:
      runs: summaries by the name shown in the legend; see `metrics.summarize`.
      path: of the PNG.

    Raises:
      ValueError: there is nothing to plot, runs of different numbers of aligned models are
        mixed, or the file cannot be written.
    """
    looks = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=True)
    found = {name: summaries for name, summaries in runs.items() if summaries}
    curves = [Curve(name, found[name], *look) for name, look in zip(found, looks, strict=False)]
    if not curves:
        raise ValueError("there are no rows to plot")
    models = {len(summary.lambda_) for curve in curves for summary in curve.summaries}
    if len(models) > 1:
        raise ValueError(f"cannot plot runs with different numbers of aligned models: {sorted(models)}")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names may hold letters that the font lacks: boxes are drawn for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        write_bytes(path, _png(_heat_maps(curves) if models == {2} else _panels(curves)))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib in it: equal figures are equal files.
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _quantities(curves: Sequence[Curve]) -> list[Quantity]:
    """Returns what to show: rewards (or the log ratio) first, then KL and length."""
    summaries = [summary for curve in curves for summary in curve.summaries]
    names = dict.fromkeys(name for summary in summaries for name in summary.rewards)
    shown = [
        Quantity(short, lambda summary, name=name: summary.rewards.get(name))
        for name, short in short_names(list(names), width=32).items()
    ]
    if not shown and any(summary.log_ratio for summary in summaries):
        shown = [Quantity("log π_aligned / π_reference (nats)", lambda summary: summary.log_ratio)]
    return [
        *shown,
        Quantity("KL to reference (nats)", lambda summary: summary.kl_to_reference),
        Quantity("length (tokens)", lambda summary: summary.length),
    ]


def _figure(curves: Sequence[Curve], rows: int, columns: int, count: int) -> tuple[Figure, list[Axes]]:
    """Returns a captioned figure with a grid of panels, of which the first `count` are kept."""
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.3))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    figure.supxlabel(_caption(curves), fontsize=7, color=GREY)
    return figure, axes[:count]


def _grid(count: int) -> tuple[int, int]:
    """Returns rows and columns for so many panels."""
    columns = 2 if count == 4 else min(count, 3)
    return math.ceil(count / columns), columns


def _caption(curves: Sequence[Curve]) -> str:
    summaries = [summary for curve in curves for summary in curve.summaries]
    completions = _span([summary.n for summary in summaries], "completion")
    counts = f"n = {completions} of {_span([s.prompts for s in summaries], 'prompt')} per strength"
    known = any(not math.isnan(s.length.low) for s in summaries) and len(summaries[0].lambda_) != 2
    return f"{counts}; bands and bars: 95 % intervals, bootstrap over prompts" if known else counts


def _span(numbers: Sequence[int], noun: str) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}–{high:,} {noun}s" if low < high else f"{low:,} {noun}{'s' if low > 1 else ''}"


def _text(number: float) -> str:
    return f"{number:.3g}".replace("-", "−")


# Curves over the strength.


def _panels(curves: Sequence[Curve]) -> Figure:
    quantities = _quantities(curves)
    count = len(quantities) + (len(quantities) > 2)
    figure, axes = _figure(curves, *_grid(count), count)
    for ax, quantity in zip(axes, quantities, strict=False):
        _plot_over_strength(ax, curves, quantity)
    if len(curves) > 1:
        _add_legend(figure, curves)
    if count > len(quantities):
        _plot_frontier(axes[-1], curves, quantities[0])
        # Where points and labels meet is known when the layout is.
        figure.draw_without_rendering()
        _label_points(axes[-1], curves, quantities[0])
    return figure


def _add_legend(figure: Figure, curves: Sequence[Curve]) -> None:
    handles = [Line2D([], [], color=curve.color, marker=curve.marker, label=curve.name) for curve in curves]
    longest = max(len(curve.name) for curve in curves)
    # In inches: a letter takes about 0.075, a handle and its spaces 0.6.
    fitting = max(1, int(figure.get_figwidth() / (0.075 * longest + 0.6)))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(fitting, len(curves)))


def _plot_over_strength(ax: Axes, curves: Sequence[Curve], quantity: Quantity) -> None:
    """Draws a quantity over λ; over the order of the strengths if they are vectors."""
    strengths = sorted({summary.lambda_ for curve in curves for summary in curve.summaries})
    numeric = len(strengths[0]) == 1
    places = {strength: strength[0] if numeric else float(i) for i, strength in enumerate(strengths)}
    for curve in curves:
        points = [(places[s.lambda_], value) for s in curve.summaries if (value := quantity.of(s))]
        x = np.array([place for place, _ in points])
        mean, low, high = np.array([(v.mean, v.low, v.high) for _, v in points]).reshape(-1, 3).T
        joined = numeric and len(points) > 1
        style = {"color": curve.color, "marker": curve.marker, "clip_on": False, "zorder": 3}
        ax.plot(x, mean, linestyle="-" if joined else "none", **style)
        if joined:
            ax.fill_between(x, low, high, color=curve.color, alpha=0.18, linewidth=0)
        else:
            ax.vlines(x, low, high, color=curve.color, linewidth=1.2)
    ax.set_ylabel(quantity.label)
    if numeric:
        betas = {summary.beta for curve in curves for summary in curve.summaries}
        _label_strengths(ax, list(places.values()), betas.pop() if len(betas) == 1 else None)
    else:
        ax.set_xticks(list(places.values()), map(format_strength, strengths), rotation=90)


def _label_strengths(ax: Axes, strengths: list[float], beta: float | None) -> None:
    """Labels λ below the axis, β/λ above it, and the two models."""
    if max(map(abs, strengths)) > ASINH_FROM:
        ax.set_xscale("asinh", linear_width=1.0)
    if len(strengths) == 1:
        ax.set_xlim(strengths[0] - 0.5, strengths[0] + 0.5)
    ticks = _thin_out(ax, strengths, 0.09)
    ax.set_xticks(ticks, map(_text, ticks))
    ax.set_xticks([], minor=True)
    _write(ax, "λ", (0, 0), (-6, -4), ha="right", va="top", fontsize=9)
    for end, name in ((0.0, "reference"), (1.0, "aligned")):
        if end in ticks:
            ax.axvline(end, color="#B0B0B0", linewidth=0.7, zorder=0)
            _write(ax, name, (end, 0), (0, -16), va="top", at_strength=True)
    if beta is not None:
        _write(ax, "β/λ", (0, 1), (-6, 6), ha="right")
        for strength in _thin_out(ax, [s for s in strengths if s >= 0], 0.14):
            text = f"{beta / strength:.2g}" if strength else "∞"
            _write(ax, text, (strength, 1), (0, 6), at_strength=True)


def _thin_out(ax: Axes, strengths: list[float], spacing: float) -> list[float]:
    """Returns strengths that stand `spacing` widths of the axis apart: the pair's first, then the ends."""
    if len(strengths) < 2:
        return strengths
    low, high = min(strengths), max(strengths)
    place = ax.get_xaxis().get_transform().transform
    width = place(high) - place(low)
    kept: list[float] = []
    for strength in [*(end for end in (0.0, 1.0) if low <= end <= high), high, low, *strengths]:
        if all(abs(place(strength) - place(other)) >= spacing * width for other in kept):
            kept.append(strength)
    return sorted(kept)


def _write(
    ax: Axes, text: str, xy, offset, at_strength: bool = False, ha="center", va="bottom", fontsize=7
) -> None:
    """Writes outside the axes: `xy` in their width and height, the first a strength if `at_strength`."""
    where = ax.get_xaxis_transform() if at_strength else ax.transAxes
    style = {"color": GREY if fontsize < 8 else "black", "fontsize": fontsize, "ha": ha, "va": va}
    ax.annotate(text, xy, xycoords=where, xytext=offset, textcoords="offset points", **style)


# Reward against KL.


def _known(curve: Curve, quantity: Quantity) -> list[tuple[Summary, Estimate]]:
    """Returns the summaries that have the quantity, with it."""
    return [(summary, value) for summary in curve.summaries if (value := quantity.of(summary))]


def _plot_frontier(ax: Axes, curves: Sequence[Curve], quantity: Quantity) -> None:
    for curve in curves:
        points = _known(curve, quantity)
        kls = [(s.kl_to_reference.mean, s.kl_to_reference.low, s.kl_to_reference.high) for s, _ in points]
        x, x_low, x_high = np.array(kls).reshape(-1, 3).T
        y, y_low, y_high = np.array([(v.mean, v.low, v.high) for _, v in points]).reshape(-1, 3).T
        ax.hlines(y, x_low, x_high, color=curve.color, linewidth=0.8, alpha=0.4)
        ax.vlines(x, y_low, y_high, color=curve.color, linewidth=0.8, alpha=0.4)
        joined = len(curve.summaries[0].lambda_) == 1
        style = {"color": curve.color, "marker": curve.marker, "linewidth": 1, "zorder": 3}
        ax.plot(x, y, linestyle="-" if joined else "none", **style)
    ax.set_xlabel("KL to reference (nats); labels: λ")
    ax.set_ylabel(quantity.label)
    ax.margins(0.13, 0.1)


def _label_points(ax: Axes, curves: Sequence[Curve], quantity: Quantity) -> None:
    """Writes λ beside each point, where it covers least; not at all if it must cover another label."""
    scale = 72 / ax.figure.dpi  # pixels to points
    lines = [ax.transData.transform(line.get_xydata()) * scale for line in ax.lines]
    # Points along each line stand for it.
    steps = np.linspace(0, 1, 25)[:, None]
    ink = np.concatenate(
        [a + steps * (b - a) for line in lines for a, b in zip(line, [*line[1:], *line[-1:]], strict=True)]
    )
    labels: list[tuple[np.ndarray, np.ndarray]] = []
    points = [(curve, summary, value) for curve in curves for summary, value in _known(curve, quantity)]
    # The pair is labelled first.
    for curve, summary, value in sorted(points, key=lambda point: point[1].lambda_ not in ((0.0,), (1.0,))):
        text = "+".join(map(_text, summary.lambda_))
        half = np.array([2.1 * len(text), 3.5])
        xy = (summary.kl_to_reference.mean, value.mean)
        offsets = COMPASS * (half + 4)
        places = ax.transData.transform(xy) * scale + offsets
        covered = np.sum(np.all(np.abs(ink - places[:, None]) < half + 1, axis=-1), axis=-1).astype(float)
        for place, size in labels:
            covered[np.all(np.abs(places - place) < half + size, axis=-1)] = np.inf
        best = np.argmin(covered)
        if covered[best] < np.inf:
            labels.append((places[best], half))
            style = {
                "color": curve.color,
                "fontsize": 6.5,
                "ha": "center",
                "va": "center_baseline",
                "zorder": 4,
            }
            halo = [withStroke(linewidth=1.5, foreground="white")]
            ax.annotate(
                text, xy, xytext=offsets[best], textcoords="offset points", path_effects=halo, **style
            )


# Two aligned models.


def _heat_maps(curves: Sequence[Curve]) -> Figure:
    """Returns a heat map of each quantity, in a row for each run if there are several."""
    quantities = _quantities(curves)
    panels = [(curve, quantity) for curve in curves for quantity in quantities]
    grid = _grid(len(quantities)) if len(curves) == 1 else (len(curves), len(quantities))
    figure, axes = _figure(curves, *grid, len(panels))
    for ax, (curve, quantity) in zip(axes, panels, strict=True):
        # One scale of colours for all runs.
        values = [value.mean for c in curves for _, value in _known(c, quantity)]
        _plot_heat_map(ax, curve, quantity, min(values), max(values))
        title = quantity.label if len(curves) == 1 else f"{curve.name}: {quantity.label}"
        ax.set_title(title, fontsize=9 if len(title) < 40 else 7)
    return figure


def _plot_heat_map(ax: Axes, curve: Curve, quantity: Quantity, low: float, high: float) -> None:
    first, second = (sorted({s.lambda_[i] for s in curve.summaries}) for i in range(2))
    grid = np.full((len(second), len(first)), np.nan)
    for summary, value in _known(curve, quantity):
        grid[second.index(summary.lambda_[1]), first.index(summary.lambda_[0])] = value.mean
    image = ax.imshow(grid, origin="lower", cmap="cividis", aspect="auto", vmin=low, vmax=high)
    for strengths, set_ticks in ((first, ax.set_xticks), (second, ax.set_yticks)):
        step = math.ceil(len(strengths) / 8)
        set_ticks(range(0, len(strengths), step), map(_text, strengths[::step]))
    ax.set_xlabel("λ₁")
    ax.set_ylabel("λ₂")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, aspect=25).outline.set_visible(False)
    if max(grid.shape) <= 7:
        _write_values(ax, grid, low, high)


def _write_values(ax: Axes, grid: np.ndarray, low: float, high: float) -> None:
    digits = max(0, 2 - math.floor(math.log10(high - low))) if high > low else 2
    for (i, j), value in np.ndenumerate(grid):
        if not math.isnan(value):
            color = "black" if value > (low + high) / 2 else "white"
            text = f"{value:z.{min(digits, 4)}f}".replace("-", "−")
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
