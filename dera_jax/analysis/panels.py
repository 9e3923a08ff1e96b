"""What a figure's panels show: a quantity over the strength, over the KL, over two strengths.

Each function draws into axes it is given; `plots` arranges them. NumPy and matplotlib only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.summaries import Summary
from dera_jax.strengths import format_strength

GREY = "#707070"
ASINH_FROM = 4.0
"""Strengths beyond this are shown on a scale linear near 0 and logarithmic far away."""
MOST_MARKERS = 40
"""Points of a curve that have a marker each."""
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


def known(curve: Curve, quantity: Quantity) -> list[tuple[Summary, Estimate]]:
    """Returns the summaries that have the quantity, with it."""
    return [(summary, value) for summary in curve.summaries if (value := quantity.of(summary))]


def is_comparable(summary: Summary) -> bool:
    """Whether a line may join the summary to others: of a number as strength and most of the prompts.

    Two such strengths share prompts, so that their means differ by the strength. Where every prompt
    has a strength of its own, they would differ by the prompts.
    """
    return len(summary.lambda_) == 1 and summary.coverage > 0.5


def _groups(curve: Curve, quantity: Quantity) -> list[tuple[list[tuple[Summary, Estimate]], bool]]:
    """Returns the points that a line joins and those that stand alone, each with whether it does.

    A group without points is left out: drawn without clipping, it would have no place, and the
    figure no layout.
    """
    points = known(curve, quantity)
    joined = [point for point in points if is_comparable(point[0])]
    if len(joined) < 2:
        joined = []
    strengths = {summary.lambda_ for summary, _ in joined}
    alone = [point for point in points if point[0].lambda_ not in strengths]
    return [(group, group is joined) for group in (joined, alone) if group]


def _bounds(estimates: Sequence[Estimate]) -> np.ndarray:
    """Returns means, lower and upper ends: [3, estimates]."""
    return np.array([(value.mean, value.low, value.high) for value in estimates]).T


def _text(number: float) -> str:
    return f"{number:.3g}".replace("-", "−")


def plot_over_strength(ax: Axes, curves: Sequence[Curve], quantity: Quantity, dial: str = "λ") -> None:
    """Draws a quantity over λ, or another dial; over the order of the strengths if they are vectors."""
    strengths = sorted({summary.lambda_ for curve in curves for summary in curve.summaries})
    numeric = len(strengths[0]) == 1
    places = {strength: strength[0] if numeric else float(i) for i, strength in enumerate(strengths)}
    for curve in curves:
        for points, joined in _groups(curve, quantity):
            x = np.array([places[summary.lambda_] for summary, _ in points])
            mean, low, high = _bounds([value for _, value in points])
            marker = curve.marker if len(points) <= MOST_MARKERS else ""
            style = {"color": curve.color, "marker": marker, "clip_on": False, "zorder": 3}
            ax.plot(x, mean, linestyle="-" if joined else "none", **style)
            if joined and not np.isnan(low).any():  # a band has no holes; bars may lack some
                ax.fill_between(x, low, high, color=curve.color, alpha=0.18, linewidth=0)
            else:
                ax.vlines(x, low, high, color=curve.color, linewidth=1.2)
    ax.set_ylabel(quantity.label)
    if numeric:
        betas = {summary.beta for curve in curves for summary in curve.summaries}
        _label_strengths(ax, list(places.values()), betas.pop() if len(betas) == 1 else None, dial)
    else:
        ax.set_xticks(list(places.values()), map(format_strength, strengths), rotation=90)


def _label_strengths(ax: Axes, strengths: list[float], beta: float | None, dial: str) -> None:
    """Labels the dial below the axis; of λ also β/λ above it, and the two models."""
    if max(map(abs, strengths)) > ASINH_FROM:
        ax.set_xscale("asinh", linear_width=1.0)
    if len(strengths) == 1:
        ax.set_xlim(strengths[0] - 0.5, strengths[0] + 0.5)
    ticks = _thin_out(ax, strengths, 0.09)
    ax.set_xticks(ticks, map(_text, ticks))
    ax.set_xticks([], minor=True)
    if dial != "λ":
        ax.set_xlabel(dial)
        return
    _write(ax, dial, (0, 0), (-6, -4), ha="right", va="top", fontsize=9)
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
    # Then those with the fewest digits.
    plainest = sorted(strengths, key=lambda strength: len(f"{strength:.4g}"))
    for strength in [*(end for end in (0.0, 1.0) if low <= end <= high), high, low, *plainest]:
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


def plot_frontier(ax: Axes, curves: Sequence[Curve], quantity: Quantity, dial: str = "λ") -> None:
    """Draws a quantity over the KL to the reference, a point per value of the dial."""
    for curve in curves:
        for points, joined in _groups(curve, quantity):
            x, x_low, x_high = _bounds([summary.kl_to_reference for summary, _ in points])
            y, y_low, y_high = _bounds([value for _, value in points])
            ax.hlines(y, x_low, x_high, color=curve.color, linewidth=0.8, alpha=0.4)
            ax.vlines(x, y_low, y_high, color=curve.color, linewidth=0.8, alpha=0.4)
            style = {"color": curve.color, "marker": curve.marker, "linewidth": 1, "zorder": 3}
            ax.plot(x, y, linestyle="-" if joined else "none", **style)
    ax.set_xlabel(f"KL to reference (nats); labels: {dial}")
    ax.set_ylabel(quantity.label)
    ax.margins(0.13, 0.1)


def label_points(ax: Axes, curves: Sequence[Curve], quantity: Quantity) -> None:
    """Writes λ beside each point, where it covers least; not at all if it must cover another label."""
    scale = 72 / ax.figure.dpi  # pixels to points
    ink = _ink(ax) * scale
    labels: list[tuple[np.ndarray, np.ndarray]] = []
    points = [(curve, summary, value) for curve in curves for summary, value in known(curve, quantity)]
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


def _ink(ax: Axes) -> np.ndarray:
    """Returns points, in pixels, that stand for the lines and markers drawn: [points, 2]."""
    steps = np.linspace(0, 1, 25)[:, None]
    ink = []
    for line in ax.lines:
        places = ax.transData.transform(line.get_xydata())
        after = places if line.get_linestyle() == "None" else [*places[1:], *places[-1:]]
        ink += [a + steps * (b - a) for a, b in zip(places, after, strict=True)]
    return np.concatenate(ink)


def plot_heat_map(ax: Axes, curve: Curve, quantity: Quantity, low: float, high: float) -> None:
    """Draws a quantity over (λ₁, λ₂), in colours from `low` to `high`."""
    first, second = (sorted({s.lambda_[i] for s in curve.summaries}) for i in range(2))
    grid = np.full((len(second), len(first)), np.nan)
    for summary, value in known(curve, quantity):
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
