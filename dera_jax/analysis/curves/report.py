"""A curve as text, as CSV and as JSON."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dera_jax.analysis.curves.bounds import Bound
from dera_jax.analysis.curves.certificate import Certificate
from dera_jax.analysis.curves.curve import LEAST_EFFECTIVE, Curve, CurvePoint
from dera_jax.analysis.curves.pool import Pool
from dera_jax.analysis.estimates import Estimate, estimate, estimate_to_json
from dera_jax.analysis.reports import harmless
from dera_jax.analysis.tables import Column, estimate_cells, format_columns, short_names, strength_cells
from dera_jax.common.shown import shown

FORMAT = 1
"""Of a curve's JSON."""
HEADINGS = {
    "kl": "KL (nats)", "length": "length (tokens)", "cut": "cut off", "log_z": "log Z", "log_ratio": "log-ratio",
}  # fmt: skip
FEW = 8
"""Completions of a prompt below which weights that are normalized for it are told to be biased."""


@dataclass(frozen=True)
class Told:
    """All that is told of a curve."""

    curve: Curve
    limit_means: str
    """Of whole responses; of the realigned policy cut responses are members."""
    plain: Mapping[float, Mapping[str, Estimate]]
    """Plain means of the completions at each strength of the pool, as they are."""
    dots: Mapping[float, Mapping[str, Estimate]]
    """Likewise of those that are members of the law: what the figure draws."""
    beta: float | None
    bounds: Sequence[Bound] = ()
    certificate: Certificate | None = None
    completions: int = 0
    unscored: Mapping[str, int] = field(default_factory=dict)
    """Completions that a reward has no number for."""


def counted(number: int, noun: str) -> str:
    """Returns `1 prompt`, `2 prompts`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def unscored(pool: Pool) -> dict[str, int]:
    """Returns how many completions each reward has no number for, where there are any."""
    lacking = {name: int(np.isnan(values).sum()) for name, values in pool.values.items()}
    return {name: count for name, count in lacking.items() if count}


def plain_means(pool: Pool, member: np.ndarray | None = None) -> dict[float, dict[str, Estimate]]:
    """Returns the means of the completions that were drawn at each strength of a pool, as they are.

    Args:
      member: which of them count; None: all.
    """
    found: dict[float, dict[str, Estimate]] = {}
    for strength in pool.strengths:
        own = pool.drawn_at == strength
        own = own if member is None else own & member
        if not own.any():
            continue
        part = pool.part(own)
        figures = {**part.values, "kl": part.own_kl, "cut": part.cut.astype(float)}
        found[strength] = {}
        for name, values in figures.items():
            known = ~np.isnan(values)
            if known.any():
                prompts = [part.prompts[n] for n in part.prompt[known]]
                found[strength][name] = estimate(values[known], prompts)
    return found


def tell_curve(told: Told, most: int = 12) -> str:
    """Returns a table of at most so many strengths, those of the pool among them, and what certifies it."""
    points = _shown(told, most)
    names = [name for name in told.curve.names if name != "log_ratio"]
    short = short_names([name for name in names if name not in HEADINGS])
    columns = [
        Column("λ", strength_cells([(point.lambda_,) for point in points])),
        *(
            Column(HEADINGS.get(name) or short[name], estimate_cells([p.figures[name] for p in points]))
            for name in names
        ),
        Column("effective", [_share(point) for point in points]),
    ]
    lines = [format_columns(columns), "", *_plain_lines(told), *_certificate_lines(told)]
    return "\n".join(lines)


def _shown(told: Told, most: int) -> list[CurvePoint]:
    points = told.curve.points
    own = [point for point in points if point.lambda_ in told.plain]
    step = max(1, math.ceil(len(points) / max(1, most - len(own))))
    kept = {point.lambda_ for point in (*points[::step], *own, points[-1])}
    return [point for point in points if point.lambda_ in kept]


def _share(point: CurvePoint) -> str:
    return f"{point.effective:.0%}" if point.drawn else f"({point.effective:.0%})"


def _plain_lines(told: Told) -> list[str]:
    law = "whole responses (Eq. 5)" if told.curve.law == "response" else "the realigned policy (Eq. 6)"
    lines = [
        f"{law}, from {counted(told.completions, 'completion')} of {counted(len(told.curve.prompts), 'prompt')} at λ = "
        f"{', '.join(f'{s:g}' for s in told.plain)}; ± is half a 95 % interval over prompts; effective: share of the "
        f"pool that carries the weight (in brackets: below {LEAST_EFFECTIVE:.0%}, not to be relied on)"
    ]
    for name, count in told.unscored.items():
        lines.append(f"{shown(name, 60)}: {count} of {told.completions} completions have no number for it")
    if told.curve.law == "response":
        cut = ", ".join(
            f"{means['cut'].mean:.0%} cut off and {means['length'].mean:.1f} tokens at λ = {strength:g}"
            for strength, means in told.plain.items()
        )
        means = "left out" if told.limit_means == "ended" else "members"
        lines.append(f"as decoded: {cut}; completions cut off are {means} (--limit-means={told.limit_means})")
        if told.completions < FEW * len(told.curve.prompts):
            lines.append(
                f"{told.completions / len(told.curve.prompts):.3g} completions of a prompt are few: weights are "
                f"normalized for each prompt, and biased towards the plain means (more: --num-samples)"
            )
    return lines


def _certificate_lines(told: Told) -> list[str]:
    lines = [
        f"log Z at λ = {bound.lambda_:g}: from below {_signed(bound.lower)}, from above {_signed(bound.upper)}"
        for bound in told.bounds
        if bound.upper.mean or bound.upper.low
    ]
    if (found := told.certificate) is None:
        return lines
    if found.integral:
        lines.append(f"∫₀¹ E[ℓ] dλ = {_signed(found.integral)} (0 but for noise)")
    if found.ends:
        off = {name: each for name, each in found.ends.items() if each.low > 0 or each.high < 0}
        said = (
            "; ".join(f"{name}: {_signed(each)}" for name, each in off.items()) or "none beyond its interval"
        )
        lines.append(f"curve less plain means at λ = 0 and 1: {said} (of {len(found.ends)})")
    lines.append(f"slopes by covariance and by differences: at most {found.slope:.1g} apart")
    return lines


def _signed(found: Estimate) -> str:
    interval = "" if math.isnan(found.low) else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.mean:.3g}{interval}"


def curve_to_csv(told: Told) -> str:
    """Returns a line per strength: every figure and its slope with intervals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [_csv_row(point, told) for point in told.curve.points]
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return text.getvalue()


def _csv_row(point: CurvePoint, told: Told) -> dict:
    beta = told.beta / point.lambda_ if told.beta and point.lambda_ > 0 else ""
    row = {
        "lambda": f"{point.lambda_:.6g}",
        "beta_over_lambda": beta,
        "effective_share": f"{point.effective:.6g}",
    }
    row["drawn"] = int(point.drawn)
    for name in told.curve.names:
        for kind, found in (("", point.figures.get(name)), ("_slope", point.slopes.get(name))):
            for end in ("mean", "low", "high"):
                value = getattr(found, end) if found else math.nan
                column = f"{name}{kind}" + ("" if end == "mean" else f"_{end}")
                row[harmless(column)] = "" if math.isnan(value) else f"{value:.6g}"
    return row


def curve_to_json(told: Told) -> dict:
    """Returns all figures, and of each prompt what they are the means of, for `eval.tune`."""
    curve = told.curve
    return {
        "format": FORMAT,
        "law": curve.law,
        "limit_means": told.limit_means,
        "beta": told.beta,
        "completions": told.completions,
        "prompt_ids": list(curve.prompts),
        "points": [_point_to_json(point) for point in curve.points],
        "plain": [
            {"lambda": strength, **{name: estimate_to_json(each) for name, each in means.items()}}
            for strength, means in told.plain.items()
        ],
        "bounds": [
            {
                "lambda": bound.lambda_,
                "lower": estimate_to_json(bound.lower),
                "upper": estimate_to_json(bound.upper),
                "exact_samples": bound.exact,
            }
            for bound in told.bounds
        ],
        "certificate": _certificate_to_json(told.certificate),
    }


def _point_to_json(point: CurvePoint) -> dict:
    def known(values) -> list[float | None]:
        return [None if math.isnan(value) else value for value in map(float, values)]

    return {
        "lambda": point.lambda_,
        "effective_share": point.effective,
        "drawn": point.drawn,
        "figures": {name: estimate_to_json(each) for name, each in point.figures.items()},
        "slopes": {name: estimate_to_json(each) for name, each in point.slopes.items()},
        "by_prompt": {name: known(values) for name, values in point.values.items()},
    }


def _certificate_to_json(found: Certificate | None) -> dict | None:
    if found is None:
        return None
    return {
        "integral": estimate_to_json(found.integral) if found.integral else None,
        "ends": {name: estimate_to_json(each) for name, each in found.ends.items()},
        "slope": found.slope,
    }
