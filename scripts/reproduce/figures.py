"""The paper's figures, drawn from our rows: the same panels under the same names."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.plots import COLORS, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import make_folder, write_bytes
from scripts.reproduce import evidence as ev
from scripts.reproduce.decomposition import PARTS, Parts
from scripts.reproduce.evidence import Evidence, Quantity

LOOKS = {
    "DeRa": {"color": COLORS[0], "marker": "o"},
    "retrained": {"color": COLORS[1], "marker": "s"},
    "DeRa, weighted to Eq. 5": {"color": COLORS[2], "marker": "D"},
    "weights combined": {"color": COLORS[3], "marker": "^"},
}
"""Each way to a strength has one colour and marker in all figures."""

DODGE = 0.008
"""Step between ways beside each other, as a share of the axis up to 2: bars of equal means would hide each other."""

WIDTH, HEIGHT = 7.0, 2.3
"""Of a page, and of a row of panels, in inches."""

GREY = "#707070"
Draw = Callable[[Axes], None]


def save(path: Path, panels: Sequence[tuple[str, Draw]], note: str, columns: int = 3) -> None:
    """Writes a figure of titled panels with a note below, as PNG at page width."""
    make_folder(path.parent)
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(WIDTH, HEIGHT * rows + 0.35), layout="constrained")
        axes = list(figure.subplots(rows, min(columns, len(panels)), squeeze=False).flat)
        for ax, (title, draw) in zip(axes, panels, strict=False):
            draw(ax)
            ax.set_title(title, fontsize=8.5, loc="left")
        for ax in axes[len(panels) :]:
            ax.remove()
        handles = {
            label: handle
            for ax in figure.axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
        figure.supxlabel(note, fontsize=6.5, color=GREY)
        write_bytes(path, png_of(figure, 160))


def line(ax: Axes, name: str, found: Mapping[float, Estimate], joined: bool = True) -> None:
    """Draws a way's means over the strength, with 95 % intervals; a little beside those of other ways."""
    if not found:
        return
    strengths = sorted(found)
    places = np.array(strengths) + DODGE * (list(LOOKS).index(name) - 1) * min(max(strengths), 2)
    means = np.array([found[s].mean for s in strengths])
    spread = np.array([[found[s].mean - found[s].low, found[s].high - found[s].mean] for s in strengths]).T
    ax.errorbar(
        places,
        means,
        np.nan_to_num(np.abs(spread)),
        label=name,
        linestyle="-" if joined else "none",
        elinewidth=0.8,
        capsize=1.5,
        capthick=0.8,
        markersize=3.5,
        **LOOKS[name],
    )


def over_strength(ax: Axes, label: str, beta: float | None = None, wide: bool = False) -> None:
    """Names the axes of a quantity over λ; `wide` strengths on a scale that is logarithmic far away."""
    ax.set_xlabel("λ" if beta is None else f"λ (β/λ = {beta:g}/λ)")
    ax.set_ylabel(label)
    if wide:
        ax.set_xscale("asinh", linear_width=1.0)
        ax.set_xlabel(f"{ax.get_xlabel()}, logarithmic beyond 1")
        ticks = {0: "0", 0.5: ".5", 1: "1", 2: "2", 5: "5", 10: "10"}
        reached = [tick for tick in ticks if tick <= ax.get_xlim()[1]]
        ax.set_xticks(reached, [ticks[tick] for tick in reached])
        ax.set_xticks([], minor=True)
    ax.axvline(1, color="#B0B0B0", linewidth=0.7, zorder=0)


def ways(
    found: Evidence,
    quantity: Quantity,
    label: str,
    *,
    combined: bool = False,
    weighted: bool = False,
    optimum: Mapping[float, float] | None = None,
    log: bool = False,
    far: float = math.inf,
) -> Draw:
    """Returns what draws a quantity of every way over the strength, means of all trainings there are.

    Args:
      optimum: means of the optimum by strength, a dashed curve.
      log: whether the quantity, above 0, is drawn on a logarithmic scale.
      far: largest strength that is drawn.
    """

    def draw(ax: Axes) -> None:
        # The ends, which both share, are no retrained models.
        several = ({"retrained": found.retrained} if found.experiment.retrained else {}) | {
            "DeRa": found.dera
        }
        if combined:
            several["weights combined"] = found.combined
        for name, rows in several.items():
            near = {at: some for at, some in rows.items() if at[0] <= far and not (log and at[0] == 0)}
            line(ax, name, ev.curve(near, quantity))
            seeds = {seed for _, seed in near}
            if len(seeds) > 1:
                points = [(s, ev.mean(some, quantity).mean) for (s, _), some in near.items() if s]
                ax.plot(*np.array(points).T, **LOOKS[name], linestyle="none", markersize=2, alpha=0.6)
        if weighted:
            first = {s: some for (s, seed), some in found.dera.items() if seed == 0 and s <= min(far, 2)}
            by = {s: ev.weighted(some, quantity) for s, some in first.items()}
            line(ax, "DeRa, weighted to Eq. 5", {s: mean for s, mean in by.items() if mean})
        if optimum:
            at = [s for s in sorted(optimum) if s <= far and not (log and s == 0)]
            ax.plot(at, [optimum[s] for s in at], "--", color="black", linewidth=0.9, label="optimum of β/λ")
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        over_strength(ax, label, found.experiment.beta, wide=min(far, max(s for s, _ in found.dera)) > 4)

    return draw


def rewarded(rows: Sequence[dict], reward: Quantity) -> tuple[int, int]:
    """Returns the shortest and the longest length, as rows have it, that has the largest reward."""
    most = max(reward(row) for row in rows)
    found = [row["length"] for row in rows if reward(row) == most]
    return min(found), max(found)


def outlines(both: Mapping[str, Mapping[float, Sequence[dict]]], band: tuple[int, int]) -> Draw:
    """Returns what draws the lengths of two ways over each other, a strength above the other, on one scale."""

    def draw(ax: Axes) -> None:
        strengths = sorted(set.intersection(*({*each} for each in both.values())), reverse=True)
        longest = max(int(ev.lengths(rows).max()) for each in both.values() for rows in each.values())
        edges = np.arange(0, longest + 2, max(1, longest // 40))
        shares = {
            (name, s): np.histogram(ev.lengths(each[s]), edges)[0] / len(each[s])
            for name, each in both.items()
            for s in strengths
        }
        top = max(each.max() for each in shares.values())
        ax.axvspan(band[0], band[1] + 1, color="#F0E442", alpha=0.35, linewidth=0, zorder=0)
        for (name, strength), each in shares.items():
            place = strengths.index(strength)
            ax.stairs(
                place + 0.9 * each / top, edges, baseline=place, color=LOOKS[name]["color"], linewidth=0.9,
                label=name,
            )  # fmt: skip
        ax.set_yticks(range(len(strengths)), [f"{s:g}" for s in strengths])
        ax.set_xlabel("length (tokens)")
        ax.set_ylabel("λ")
        ax.set_xlim(0, longest)

    return draw


def stacked(taken_apart: Sequence[Parts], quantity: str) -> Draw:
    """Returns what draws the parts of the gap as stacked bars, and the gap as points."""

    def draw(ax: Axes) -> None:
        places = np.arange(len(taken_apart))
        above, below = np.zeros(len(places)), np.zeros(len(places))
        for part, color in zip(PARTS, (COLORS[2], COLORS[0], COLORS[1]), strict=True):
            heights = np.array([each.parts(quantity)[part] for each in taken_apart])
            starts = np.where(heights >= 0, above, below)
            ax.bar(places, heights, 0.75, starts, color=color, label=part, linewidth=0)
            above, below = above + np.maximum(heights, 0), below + np.minimum(heights, 0)
        gaps = [each.total[quantity].estimate for each in taken_apart]
        spread = [[gap.mean - gap.low for gap in gaps], [gap.high - gap.mean for gap in gaps]]
        ax.errorbar(
            places, [gap.mean for gap in gaps], np.abs(spread), color="black", linestyle="none", marker="o",
            markersize=2.5, elinewidth=0.8, capsize=1.5, label="DeRa − retrained",
        )  # fmt: skip
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_xticks(places, [f"{each.strength:g}" for each in taken_apart], fontsize=7, rotation=60)
        ax.set_xlabel("λ")
        ax.set_ylabel("KL (nats)" if quantity == "KL" else "reward")

    return draw


def accuracies(found: Evidence) -> Draw:
    """Returns what draws the accuracy on preference pairs over the strength."""

    def draw(ax: Axes) -> None:
        for name in ("retrained", "DeRa"):
            line(ax, name, found.accuracies.get(name, {}))
        far = max((s for each in found.accuracies.values() for s in each), default=0.0)
        over_strength(ax, "share of pairs", found.experiment.beta, wide=far > 4)

    return draw


def front(
    cells: Mapping[tuple, Sequence[dict]],
    trained: Mapping[tuple, Sequence[dict]],
    rewards: tuple[Quantity, Quantity],
) -> Draw:
    """Returns what draws one reward over another: mixed at (λ₁, λ₂), and trained on the weighted sum."""

    def draw(ax: Axes) -> None:
        means = {}
        for name, several in (("DeRa", cells), ("retrained", trained)):
            for at, rows in several.items():
                x, y = (ev.mean(rows, quantity) for quantity in rewards)
                means.setdefault(name, {})[at] = (x.mean, y.mean)
                spread = [[[v.mean - v.low], [v.high - v.mean]] for v in (x, y)]
                ax.errorbar(x.mean, y.mean, spread[1], spread[0], elinewidth=0.6, label=name, **LOOKS[name])
                text = "+".join(f"{s:g}" for s in at)
                ax.annotate(text, (x.mean, y.mean), (4, 4), textcoords="offset points", fontsize=6.5)
        points = sorted(means["DeRa"].values())
        best = [p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)]
        ax.plot(*np.array(best).T, color=GREY, linewidth=0.8, zorder=0)
        for at, (x, y) in means.get("retrained", {}).items():
            if at in means["DeRa"]:
                ax.plot(*np.array([(x, y), means["DeRa"][at]]).T, color=GREY, linewidth=0.6, linestyle=":")
        ax.set_xlabel("mean length reward")
        ax.set_ylabel("mean sentiment")

    return draw
