"""The figure of the chain: what perfect training, early stopping and soft rewards do to DeRa."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dera_jax.analysis.panels import GREY
from dera_jax.analysis.plots import COLORS, PANEL, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import write_bytes

PARTS = {
    "per_token": "per-token error (DeRa − whole responses)",
    "aligned": "the aligned model's training (whole responses − optimum)",
    "retrained": "the retrained model's training (optimum − retrained)",
}


def plot_chain(found: dict, path: Path) -> None:
    """Writes the six panels as PNG, whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3 * PANEL[0], 2 * PANEL[1] + 0.6))
        axes = figure.subplots(2, 3)
        _plot_rewards(axes[0, 0], found["perfect"])
        _plot_gaps(axes[0, 1], found["perfect"], "β = {beta:g}", "Perfect pairs: the per-token error")
        _plot_gaps(
            axes[0, 2],
            found["soft"],
            "{softness:g} words",
            "… where the reward falls over some words (β = 0.5)",
        )
        own = [each for each in found["trained"] if each["beta"] == 0.1]
        perfect = [each | {"steps": "∞"} for each in found["perfect"] if each["beta"] == 0.1]
        _plot_gaps(axes[1, 0], own + perfect, "{steps} steps", "By how far both are trained (β = 0.1)")
        for ax, beta in zip(axes[1, 1:], (0.1, 0.5), strict=True):
            short = next(each for each in found["trained"] if each["beta"] == beta)
            _plot_parts(
                ax, short["strengths"], f"What the gap is made of ({short['steps']} steps, β = {beta:g})"
            )
        handles, labels = axes[1, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        write_bytes(path, png_of(figure))


def _axis(ax: Axes, title: str, label: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("λ")
    ax.set_ylabel(label)


def _plot_rewards(ax: Axes, perfect: Sequence[dict]) -> None:
    for each, color in zip(perfect, COLORS, strict=False):
        x = [s["lambda"] for s in each["strengths"]]
        ax.plot(x, [s["optimum"]["reward"] for s in each["strengths"]], "--", color=color)
        ax.plot(
            x,
            [s["tokens"]["reward"] for s in each["strengths"]],
            "o-",
            color=color,
            label=f"β = {each['beta']:g}",
        )
    ax.legend(title="DeRa; dashed: optimum", title_fontsize=7, fontsize=7)
    _axis(ax, "Perfect pairs", "reward")


def _plot_gaps(ax: Axes, several: Sequence[dict], label: str, title: str) -> None:
    for each, color in zip(several, COLORS, strict=False):
        x = [s["lambda"] for s in each["strengths"]]
        ax.plot(
            x, [s["gap"]["whole"] for s in each["strengths"]], "o-", color=color, label=label.format(**each)
        )
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.legend(fontsize=7)
    _axis(ax, title, "reward: DeRa − retrained")


def _plot_parts(ax: Axes, strengths: Sequence[dict], title: str) -> None:
    places = np.arange(len(strengths))
    above, below = np.zeros(len(strengths)), np.zeros(len(strengths))
    for (part, label), color in zip(PARTS.items(), COLORS, strict=False):
        values = np.array([s["gap"][part] for s in strengths])
        ax.bar(places, values, 0.7, bottom=np.where(values >= 0, above, below), color=color, label=label)
        above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
    whole = [s["gap"]["whole"] for s in strengths]
    ax.plot(places, whole, "D", color="black", label="DeRa − retrained, their sum")
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.set_xticks(places, [f"{s['lambda']:g}" for s in strengths])
    _axis(ax, title, "reward: DeRa − retrained")
