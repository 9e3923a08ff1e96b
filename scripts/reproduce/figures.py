"""The paper's figures, drawn from our rows: the same panels under the same names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.plots import COLORS, STYLE
from dera_jax.common.files import make_folder
from scripts.reproduce import evidence as ev
from scripts.reproduce.evidence import Evidence, Quantity

LOOKS = {
    "DeRa": {"color": COLORS[0], "marker": "o"},
    "retrained": {"color": COLORS[1], "marker": "s"},
    "DeRa, weighted to Eq. 5": {"color": COLORS[2], "marker": "D"},
    "weights combined": {"color": COLORS[3], "marker": "^"},
}
"""Each way to a strength has one colour and marker in all figures."""

WIDTH, HEIGHT = 7.0, 2.5
"""Of a page, and of a row of panels, in inches."""

MARKERS = "osD^vPXph"
"""Of as many experiments: there are fewer colours than that."""

GREY = "#707070"
Draw = Callable[[Axes], None]


def save(path: Path, panels: Sequence[tuple[str, Draw]], note: str, columns: int = 3) -> None:
    """Writes a figure of titled panels with a note below, as PNG at page width."""
    make_folder(path.parent)
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(WIDTH, HEIGHT * rows + 0.35), layout="constrained")
        axes = figure.subplots(rows, min(columns, len(panels)), squeeze=False).flat
        for ax, (title, draw) in zip(axes, panels, strict=False):
            draw(ax)
            ax.set_title(title, fontsize=8.5, loc="left")
        for ax in list(axes)[len(panels) :]:
            ax.remove()
        handles = {
            label: handle
            for ax in figure.axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
        figure.supxlabel(note, fontsize=6.5, color=GREY)
        figure.savefig(path, dpi=200, metadata={"Software": None})


def line(ax: Axes, name: str, found: Mapping[float, Estimate], joined: bool = True) -> None:
    """Draws a way's means over the strength, with 95 % intervals."""
    if not found:
        return
    strengths = sorted(found)
    means = np.array([found[s].mean for s in strengths])
    spread = np.array([[found[s].mean - found[s].low, found[s].high - found[s].mean] for s in strengths]).T
    ax.errorbar(
        strengths,
        means,
        np.nan_to_num(np.abs(spread)),
        label=name,
        linestyle="-" if joined else "none",
        elinewidth=0.8,
        markersize=4,
        **LOOKS[name],
    )


def over_strength(ax: Axes, label: str, wide: bool = False) -> None:
    """Names the axes of a quantity over λ; `wide` strengths on a scale that is logarithmic far away."""
    ax.set_xlabel("λ")
    ax.set_ylabel(label)
    if wide:
        ax.set_xscale("asinh", linear_width=1.0)
        ax.set_xticks([0, 0.5, 1, 2, 5, 10], ["0", ".5", "1", "2", "5", "10"])
        ax.set_xticks([], minor=True)
    ax.axvline(1, color="#B0B0B0", linewidth=0.7, zorder=0)


def ways(
    found: Evidence, quantity: Quantity, label: str, *, combined: bool = False, weighted: bool = False
) -> Draw:
    """Returns what draws a quantity of every way over the strength."""

    def draw(ax: Axes) -> None:
        strengths = {s for s, _ in found.dera}
        # The ends, which both share, are no retrained models.
        several = ({"retrained": found.retrained} if found.experiment.retrained else {}) | {
            "DeRa": found.dera
        }
        if combined:
            several["weights combined"] = found.combined
        for name, rows in several.items():
            # The line is one training's: where there are several, means would bend it.
            first = {at: some for at, some in rows.items() if at[1] == 0}
            line(ax, name, ev.curve(first, quantity))
            others = [(s, ev.mean(some, quantity).mean) for (s, seed), some in rows.items() if seed and s]
            if others:
                ax.plot(*np.array(others).T, **LOOKS[name], linestyle="none", markersize=3, alpha=0.5)
        if weighted:
            found_for = {s: ev.weighted(found.dera[s, 0], quantity) for s in strengths}
            line(ax, "DeRa, weighted to Eq. 5", {s: mean for s, mean in found_for.items() if mean})
        over_strength(ax, label, wide=max(strengths) > 4)

    return draw


def histograms(rows: Mapping[float, Sequence[dict]], band: tuple[int, int], longest: int) -> Draw:
    """Returns what draws one histogram of lengths above the other, a strength each, with the rewarded band."""

    def draw(ax: Axes) -> None:
        edges = np.arange(0, longest + 2, max(1, longest // 50))
        ax.axvspan(*band, color="#F0E442", alpha=0.35, linewidth=0, zorder=0)
        for place, strength in enumerate(sorted(rows, reverse=True)):
            found = ev.lengths(rows[strength])
            heights, _ = np.histogram(np.clip(found, 0, longest), edges)
            top = 0.9 * heights / max(heights.max(), 1)
            ax.fill_between(
                edges[:-1], place, place + top, step="post", color=COLORS[5], alpha=0.8, linewidth=0
            )
            ax.plot([found.mean()] * 2, [place, place + 0.9], color="black", linewidth=0.8)
        ax.set_yticks(range(len(rows)), [f"{s:g}" for s in sorted(rows, reverse=True)])
        ax.set_xlabel("length (tokens); | mean")
        ax.set_ylabel("λ")
        ax.set_xlim(0, longest)

    return draw


def wins(found: Evidence, quantity: Quantity, against: float | None, label: str) -> Draw:
    """Returns what draws win rates: against one strength's rows, or with None of DeRa against retrained."""

    def draw(ax: Axes) -> None:
        dera, other = (
            {s: some for (s, seed), some in sorted(rows.items()) if seed == 0}
            for rows in (found.dera, found.retrained)
        )
        if against is None:
            shown = {
                s: ev.win_rate(dera[s], other[s], quantity) for s in dera if s in other and s not in (0, 1)
            }
            line(ax, "DeRa", shown)
        else:
            for name, rows in (("retrained", other), ("DeRa", dera)):
                shown = {
                    s: ev.win_rate(some, dera[against], quantity) for s, some in rows.items() if s != against
                }
                line(ax, name, shown)
        ax.axhline(0.5, color="#B0B0B0", linewidth=0.7, zorder=0)
        over_strength(ax, label, wide=max(dera) > 4)

    return draw


def bland_altman(points: Sequence[tuple[str, float, float]]) -> Draw:
    """Returns what draws DeRa − retrained over their mean, both in % of the quantity's range, with limits."""

    def draw(ax: Axes) -> None:
        names = list(dict.fromkeys(name for name, _, _ in points))
        for number, name in enumerate(names):
            at, gap = np.array([(m, g) for n, m, g in points if n == name]).T
            look = {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)]}
            ax.plot(at, gap, linestyle="none", markersize=3.5, label=name, **look)
        gaps = np.array([gap for _, _, gap in points])
        middle, spread = gaps.mean(), 1.96 * gaps.std(ddof=1)
        for level, style in ((middle, "-"), (middle - spread, "--"), (middle + spread, "--")):
            ax.axhline(level, color=GREY, linewidth=0.8, linestyle=style)
            ax.annotate(
                f"{level:+.1f}",
                (1, level),
                xycoords=("axes fraction", "data"),
                fontsize=7,
                va="bottom",
                ha="right",
            )
        ax.set_xlabel("mean of DeRa and retrained (% of range)")
        ax.set_ylabel("DeRa − retrained (% of range)")

    return draw


def accuracies(found: Evidence) -> Draw:
    """Returns what draws the accuracy on preference pairs over the strength."""

    def draw(ax: Axes) -> None:
        for name in ("retrained", "DeRa"):
            line(ax, name, found.accuracies.get(name, {}))
        far = max((s for each in found.accuracies.values() for s in each), default=0.0)
        over_strength(ax, "share of pairs", wide=far > 4)

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
