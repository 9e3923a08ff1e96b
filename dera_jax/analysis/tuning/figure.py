"""The figure of a choice: the objective against λ on both parts of the prompts, and what constraints bound."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.panels import GREY, Curve, Quantity, plot_heat_map, plot_over_strength
from dera_jax.analysis.plots import COLORS, MARKERS, PANEL, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.analysis.summaries import Summary
from dera_jax.analysis.tables import short_names
from dera_jax.analysis.tuning.choose import Part, Tuning
from dera_jax.analysis.tuning.objectives import Constraint, Objective
from dera_jax.analysis.tuning.report import MOST, NAMES
from dera_jax.common.files import write_bytes
from dera_jax.strengths import Strength, format_strength

PARTS = {"choosing": "prompts it was chosen on", "validation": "validation prompts"}
OBJECTIVE = "objective"
"""Under this name summaries hold it, as a reward."""
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def plot_tuning(
    tuning: Tuning,
    objective: Objective,
    constraints: Sequence[Constraint],
    path: str | Path,
    beta: float | None = None,
    retrained: Estimate | None = None,
    about: str = "",
) -> None:
    """Writes the figure as PNG, whole or not at all.

    Args:
      beta: KL strength of the aligned model.
      retrained: the objective of the model trained at β*, on the validation part.
      about: begins the caption: what the models are, say.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names may hold letters that the font lacks: boxes are drawn for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        curves = [
            Curve(label, _summaries(getattr(tuning, name), beta), color, marker)
            for (name, label), color, marker in zip(PARTS.items(), COLORS, MARKERS, strict=False)
        ]
        if len(tuning.choice.strength) == 2:
            figure = _heat_maps(tuning, objective, curves)
        else:
            figure = _panels(tuning, objective, constraints, curves, retrained)
        figure.supxlabel("\n".join(filter(None, [about, _caption(tuning)])), fontsize=7, color=GREY)
        write_bytes(path, png_of(figure))


def _summaries(part: Part, beta: float | None) -> list[Summary]:
    """Returns a part's means as summaries, which panels draw."""
    return [
        Summary(
            lambda_=strength,
            beta=beta,
            beta_effective=None,
            n=part.completions,
            prompts=part.prompts,
            coverage=1.0,
            rewards={OBJECTIVE: value} | {name: each[strength] for name, each in part.figures.items()},
            scored={},
            reward_differences={},
            kl_to_reference=UNKNOWN,
            length=UNKNOWN,
            log_ratio=None,
            ended=math.nan,
            ess=None,
            tokens=0,
        )
        for strength, value in part.objective.items()
    ]


def _quantity(name: str, label: str) -> Quantity:
    return Quantity(label, lambda summary: summary.rewards.get(name))


def _panels(
    tuning: Tuning,
    objective: Objective,
    constraints: Sequence[Constraint],
    curves: Sequence[Curve],
    retrained: Estimate | None,
) -> Figure:
    names = list(dict.fromkeys(each.name for each in constraints))
    columns = min(1 + len(names), 3)
    rows = -(-(1 + len(names)) // columns)
    width = PANEL[0] * (1.35 if columns == 1 else 1.15)
    figure = Figure(figsize=(width * columns, (PANEL[1] + 0.5) * rows + 0.3))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[1 + len(names) :]:
        ax.remove()
    plot_over_strength(
        axes[0], curves, _quantity(OBJECTIVE, short_names([objective.label], 46)[objective.label])
    )
    _mark(axes[0], tuning, curves, retrained)
    for ax, name in zip(axes[1:], names, strict=False):
        plot_over_strength(ax, curves, _quantity(name, NAMES.get(name, short_names([name], 46)[name])))
        for each in constraints:
            if each.name == name:
                _draw_bound(ax, each, tuning)
        ax.axvline(
            _place(tuning, tuning.choice.strength), color="black", linewidth=0.8, linestyle=":", zorder=1
        )
    handles = _handles(tuning, curves, retrained)
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if columns == 1 else 5)
    return figure


def _place(tuning: Tuning, strength: Strength) -> float:
    """Returns where a strength stands on the axis."""
    strengths = sorted(tuning.choosing.objective)
    return strength[0] if len(strength) == 1 else float(strengths.index(strength))


def _mark(ax: Axes, tuning: Tuning, curves: Sequence[Curve], retrained: Estimate | None) -> None:
    """Marks λ*, the strengths that constraints exclude, and the retrained model."""
    star = tuning.choice.strength
    place = _place(tuning, star)
    ax.axvline(place, color="black", linewidth=0.8, linestyle=":", zorder=1)
    excluded = [s for s, allowed in tuning.choice.satisfied.items() if not allowed]
    # Drawn without clipping, no points would have no place, and the figure no layout.
    for name, curve in zip(PARTS, curves, strict=True) if excluded else ():
        part = getattr(tuning, name)
        ax.plot(
            [_place(tuning, s) for s in excluded], [part.objective[s].mean for s in excluded], linestyle="none",
            marker=curve.marker, markerfacecolor="white", markeredgecolor=curve.color, markeredgewidth=1,
            clip_on=False, zorder=4,
        )  # fmt: skip
    ax.plot([place], [tuning.validation.objective[star].mean], color=curves[1].color, **_STAR)
    if retrained is not None:
        # Beside the star, which would cover it where DeRa told what came.
        beside = offset_copy(ax.transData, ax.figure, x=9, units="points")
        style = {"color": COLORS[2], "transform": beside, "clip_on": False, "zorder": 5}
        ax.plot([place] * 2, [retrained.low, retrained.high], linewidth=1.5, **style)
        ax.plot([place], [retrained.mean], **_RETRAINED | style)


_STAR = {"marker": "*", "markersize": 13, "linestyle": "none", "clip_on": False, "zorder": 6}
_RETRAINED = {"marker": "D", "markersize": 5, "linestyle": "none", "clip_on": False, "zorder": 5}


def _draw_bound(ax: Axes, constraint: Constraint, tuning: Tuning) -> None:
    """Draws the line that a mean must not cross, and shades what lies beyond."""
    bound = constraint.bound
    if constraint.relative:
        base = tuning.choosing.figures[constraint.name][(0.0,) * len(tuning.choice.strength)].mean
        bound = base + constraint.bound * abs(base)
    low, high = ax.get_ylim()
    ax.axhline(bound, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
    if constraint.at_least:
        ax.axhspan(min(low, bound), bound, color=GREY, alpha=0.1, linewidth=0, zorder=0)
    else:
        ax.axhspan(bound, max(high, bound), color=GREY, alpha=0.1, linewidth=0, zorder=0)
    margin = 0.04 * (high - low)
    ax.set_ylim(min(low, bound - margin), max(high, bound + margin))


def _handles(tuning: Tuning, curves: Sequence[Curve], retrained: Estimate | None) -> list[Line2D]:
    handles = [Line2D([], [], color=c.color, marker=c.marker, label=c.name) for c in curves]
    star = format_strength(tuning.choice.strength)
    handles.append(Line2D([], [], color=curves[1].color, label=f"λ* = {star}", **_STAR))
    if not all(tuning.choice.satisfied.values()):
        hollow = {"markerfacecolor": "white", "markeredgecolor": GREY, "markeredgewidth": 1}
        handles.append(
            Line2D([], [], linestyle="none", marker="o", label="excluded by a constraint", **hollow)
        )
    if retrained is not None:
        handles.append(Line2D([], [], color=COLORS[2], label="retrained at β*", **_RETRAINED))
    return handles


def _heat_maps(tuning: Tuning, objective: Objective, curves: Sequence[Curve]) -> Figure:
    """Returns the objective over (λ₁, λ₂), a map for each part in the same colours."""
    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] + 0.5))
    values = [value.mean for name in PARTS for value in getattr(tuning, name).objective.values()]
    first, second = (sorted({s[i] for s in tuning.choosing.objective}) for i in range(2))
    star = tuning.choice.strength
    for ax, curve in zip(figure.subplots(1, 2), curves, strict=True):
        plot_heat_map(ax, curve, _quantity(OBJECTIVE, OBJECTIVE), min(values), max(values))
        place = first.index(star[0]), second.index(star[1]) + 0.28
        ax.plot(*place, color=COLORS[1], **_STAR | {"markersize": 10, "clip_on": True})
        ax.set_title(curve.name, fontsize=9)
    label = short_names([objective.label], 60)[objective.label]
    figure.suptitle(f"{label}; λ* = {format_strength(star)} (star)", fontsize=9)
    return figure


def _caption(tuning: Tuning) -> str:
    choosing, validation = tuning.choosing, tuning.validation
    several = f"{choosing.completions:,} completions of " if choosing.completions > choosing.prompts else ""
    others = f"{validation.completions:,} of " if several else ""
    if len(tuning.choice.shares) > MOST and tuning.choice.interval:
        low, high = tuning.choice.interval
        sure = f"between {low:g} and {high:g} in 95 % of the resamples"
    else:
        sure = f"the choice of {tuning.choice.shares[tuning.choice.strength]:.0%} of the resamples"
    return (
        f"n = {several}{choosing.prompts} prompts per strength to choose on, {others}{validation.prompts} to validate "
        "on\n"
        f"bands and bars: 95 % intervals over prompts; λ*: {sure}"
    )
