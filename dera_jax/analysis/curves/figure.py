"""The figure of a curve: every quantity over λ, with what was decoded beside it."""

import math
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dera_jax.analysis.curves.curve import LEAST_EFFECTIVE
from dera_jax.analysis.curves.report import Told
from dera_jax.analysis.panels import GREY
from dera_jax.analysis.plots import COLORS, PANEL, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.analysis.tables import short_names
from dera_jax.common.files import write_bytes
from dera_jax.common.shown import shown

LABELS = {
    "kl": "KL to reference (nats)", "length": "length (tokens)", "cut": "share cut off", "log_z": "log Z (nats)",
}  # fmt: skip
LINE, DOTS = COLORS[0], COLORS[1]


def plot_curve(told: Told, path: Path, about: str = "") -> None:
    """Writes the figure as PNG, whole or not at all.

    Args:
      about: what the models are.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        names = [name for name in told.curve.names if name != "log_ratio"]
        figure, axes = _panels(len(names) + 1)
        short = short_names([name for name in names if name not in LABELS], width=32)
        for ax in axes:
            ax.set_xlabel("λ", labelpad=1)
        for ax, name in zip(axes, names, strict=False):
            _plot_figure(ax, told, name)
            ax.set_ylabel(LABELS.get(name) or f"reward {short[name]}")
        _plot_effective(axes[len(names)], told)
        _add_legend(figure, told)
        figure.supxlabel(
            f"{shown(about, 200)}\nbands and bars: 95 % intervals over prompts", fontsize=7, color=GREY
        )
        write_bytes(path, png_of(figure))


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.5))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _plot_figure(ax: Axes, told: Told, name: str) -> None:
    points = told.curve.points
    x = np.array([point.lambda_ for point in points])
    mean, low, high = np.array([(f.mean, f.low, f.high) for f in (point.figures[name] for point in points)]).T
    drawn = np.array([point.drawn for point in points])
    ax.plot(x, np.where(_beside(drawn), mean, np.nan), color=GREY, linestyle=":", linewidth=1)
    ax.plot(x, np.where(drawn, mean, np.nan), color=LINE)
    ax.fill_between(
        x, np.where(drawn, low, np.nan), np.where(drawn, high, np.nan), color=LINE, alpha=0.18, linewidth=0
    )
    for strength, means in told.dots.items():
        if found := means.get(name):
            ax.plot(strength, found.mean, "o", color=DOTS, zorder=4)
            ax.vlines(strength, found.low, found.high, color=DOTS, linewidth=1.2)
    if name == "log_z":
        for bound in told.bounds:
            ends = [bound.lower.mean, bound.upper.mean]
            ax.errorbar(
                bound.lambda_,
                np.mean(ends),
                np.ptp(ends) / 2,
                color="black",
                capsize=4,
                linewidth=1.2,
                zorder=5,
            )
    _limit(ax, np.concatenate([each[drawn] for each in (low, high, mean)]), told, name)


def _beside(drawn: np.ndarray) -> np.ndarray:
    """Returns where nothing is drawn, and the last point that is on either side."""
    grey = ~drawn
    grey[1:] |= ~drawn[:-1]
    grey[:-1] |= ~drawn[1:]
    return grey


def _limit(ax: Axes, values: np.ndarray, told: Told, name: str) -> None:
    """Lets what is drawn, and the dots, decide the range: what is grey may run out of it."""
    dots = [end for m in told.dots.values() if name in m for end in (m[name].mean, m[name].low, m[name].high)]
    kept = np.append(values, dots)
    kept = kept[~np.isnan(kept)]
    if kept.size:
        room = 0.08 * max(np.ptp(kept), 1e-3 * abs(kept).max(), 1e-6)
        ax.set_ylim(kept.min() - room, kept.max() + room)


def _plot_effective(ax: Axes, told: Told) -> None:
    points = told.curve.points
    ax.plot([point.lambda_ for point in points], [point.effective for point in points], color=LINE)
    ax.axhline(LEAST_EFFECTIVE, color=GREY, linewidth=0.7, linestyle=":")
    ax.set_ylim(0, 1)
    ax.set_ylabel("effective share of the pool")


def _dots_label(told: Told) -> str:
    ended = told.curve.law == "response" and told.limit_means == "ended"
    return "as decoded (Eq. 6)" + (", those that ended" if ended else "")


def _add_legend(figure: Figure, told: Told) -> None:
    law = "whole responses (Eq. 5)" if told.curve.law == "response" else "realigned policy (Eq. 6)"
    handles = [
        Line2D([], [], color=LINE, label=f"{law}, pooled"),
        Line2D([], [], color=DOTS, marker="o", linestyle="none", label=_dots_label(told)),
        Line2D([], [], color=GREY, linestyle=":", label=f"effective share below {LEAST_EFFECTIVE:.0%}"),
    ]
    if told.bounds:
        handles.append(Line2D([], [], color="black", linewidth=1.2, label="bounds of log Z"))
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if len(handles) == 4 else 3)
