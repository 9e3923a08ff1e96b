"""A tuning as text and as JSON: the table of strengths, what was chosen, how sure, what retraining showed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dera_jax.analysis.estimates import Estimate, estimate_to_json
from dera_jax.analysis.tables import Column, estimate_cells, format_columns, short_names, strength_cells
from dera_jax.analysis.tuning.beta import Target, changes, describe_betas, rounded
from dera_jax.analysis.tuning.choose import Part, Tuning, ends
from dera_jax.analysis.tuning.objectives import Constraint, Objective
from dera_jax.analysis.tuning.ranges import finer_range, wider_ranges
from dera_jax.analysis.tuning.retraining import Cost
from dera_jax.common.shown import shown
from dera_jax.strengths import Strength, format_strength, strength_to_json

MOST = 25
"""Strengths of a table; of more, some are shown."""
NAMES = {"kl": "KL (nats)", "length": "length (tokens)"}
NOT_COMPARED = (
    "not compared: models trained at the other β, so whether one of them were better still is not known, "
    "and trainings with other seeds, whose spread is not in these intervals"
)


@dataclass(frozen=True)
class Retrained:
    """A model trained at β*, on the validation prompts, as it is."""

    beta: float
    model: str
    prompts: int
    objective: Estimate
    differences: dict[Strength, Estimate]
    """The objective less that of DeRa at λ*, λ = 0 and λ = 1, pair by pair."""
    margins: dict[str, Estimate]
    """What each constraint has to spare."""
    aligned_allowed: bool | None
    """Whether λ = 1 meets them where the choice was made; None if it is not in the run."""
    cost: Cost


def format_tuning(
    tuning: Tuning, objective: Objective, constraints: Sequence[Constraint], targets: Sequence[Target]
) -> str:
    """Returns the report of a choice, without a newline at its end."""
    star = tuning.choice.strength
    lines = [
        f"objective: {objective.label}, the larger the better",
        *([f"constraints: {', '.join(shown(each.text) for each in constraints)}"] if constraints else []),
        f"chosen on {_extent(tuning.choosing)}, validated on {_extent(tuning.validation)}",
        "",
        _table(tuning, constraints, targets),
        "",
        *_chosen(tuning),
        *_certainty(tuning),
        *_better(tuning),
        *(
            f"  {shown(text)}: {_held(margin)} on the validation part"
            for text, margin in tuning.margins.items()
        ),
        *_edges(tuning),
        "",
        describe_betas(targets, star),
    ]
    if len(targets) == 1 and targets[0].beta_star is not None:
        lines += [f"  {tool:<8}  {line}" for tool, line in changes(targets[0])]
    return "\n".join(lines)


def _extent(part: Part) -> str:
    several = f" ({part.completions} completions per strength)" if part.completions != part.prompts else ""
    return f"{part.prompts} prompts{several}"


def _table(tuning: Tuning, constraints: Sequence[Constraint], targets: Sequence[Target]) -> str:
    """Returns the strengths with both parts' means, some of very many; what a constraint excludes has a cross."""
    strengths = _shown_of(list(tuning.choosing.objective), tuning.choice.strength)
    choice, beta = tuning.choice, targets[0].beta if len(targets) == 1 else None
    stars = [
        f"{cell} *" if s == choice.strength else f"{cell}  "
        for s, cell in zip(strengths, strength_cells(strengths), strict=True)
    ]
    columns = [Column("λ  ", stars)]
    if beta is not None:
        columns.append(Column("β/λ", [_ratio(beta, s[0]) for s in strengths]))
    columns += [
        Column("chosen on", estimate_cells([tuning.choosing.objective[s] for s in strengths])),
        Column("validation", estimate_cells([tuning.validation.objective[s] for s in strengths])),
    ]
    names = short_names(list(dict.fromkeys(each.name for each in constraints)))
    for name, short in names.items():
        cells = estimate_cells([tuning.choosing.figures[name][s] for s in strengths])
        columns.append(Column(NAMES.get(name, short), cells))
    if constraints:
        columns.append(Column("allowed", ["yes" if choice.satisfied[s] else "✗" for s in strengths]))
    columns.append(Column("picked in", [f"{100 * choice.shares[s]:.0f} %" for s in strengths]))
    legend = "*: λ*; ± is half a 95 % interval over prompts; picked in: share of resamples of the prompts"
    return f"{format_columns(columns)}\n\n{legend}"


def _shown_of(strengths: Sequence[Strength], star: Strength) -> list[Strength]:
    """Returns every so many strengths of a long axis, λ*, and the models themselves."""
    if len(strengths) <= MOST or len(star) > 1:
        return list(strengths)
    kept = {*strengths[:: math.ceil(len(strengths) / MOST)], star, *ends(1), strengths[-1]}
    return [strength for strength in strengths if strength in kept]


def _ratio(beta: float, lambda_: float) -> str:
    return "∞" if lambda_ == 0 else f"{beta / lambda_:.3g}" if lambda_ > 0 else "—"


def _chosen(tuning: Tuning) -> list[str]:
    star = tuning.choice.strength
    lines = [
        f"λ* = {format_strength(star)}: objective {show(tuning.validation.objective[star])} on the validation "
        f"part ({show(tuning.choosing.objective[star])} where it was picked, which is optimistically biased)"
    ]
    for other, difference in tuning.differences.items():
        lines.append(f"  gain over λ = {format_strength(other)} (paired): {show(difference)}")
    missing = [s for s in ends(len(star)) if s not in tuning.choosing.objective]
    if missing:
        lines.append(f"  not compared with λ = {', '.join(map(format_strength, missing))}: not in the run")
    return lines


def _certainty(tuning: Tuning) -> list[str]:
    choice = tuning.choice
    none = 1 - sum(choice.shares.values())
    undecided = f"; in {none:.0%} no strength meets the constraints" if none > 0.0005 else ""
    if len(choice.shares) > MOST and choice.interval:
        low, high = choice.interval
        return [f"  95 % interval of λ*, over prompts: {low:g} to {high:g}{undecided}"]
    return [
        f"  the same choice in {choice.shares[choice.strength]:.0%} of the resamples; "
        f"95 % choose among {', '.join(map(format_strength, choice.likely))}{undecided}"
    ]


def _better(tuning: Tuning) -> list[str]:
    """Returns whether λ* is surely better than the aligned model as it is."""
    star, gain = tuning.choice.strength, tuning.differences.get((1.0,))
    if star == (1.0,):
        return ["  verdict: the aligned model as it is; keep β"]
    if gain is None or math.isnan(gain.low) or not tuning.choice.satisfied[1.0,]:
        return []
    if gain.low > 0:
        return ["  verdict: surely better than λ = 1, the aligned model as it is"]
    if gain.high < 0:
        return ["  verdict: worse than λ = 1, the aligned model as it is; keep β"]
    return ["  verdict: not surely better than λ = 1, the aligned model as it is; no reason to change β"]


def _held(margin: Estimate) -> str:
    """Returns whether a constraint holds, and how surely."""
    word = "holds" if margin.mean >= 0 else "is missed"
    open_ = "" if math.isnan(margin.low) or margin.low >= 0 or margin.high < 0 else ", within noise"
    return f"{word} by {show(Estimate(abs(margin.mean), *_sides(margin)))}{open_}"


def _sides(margin: Estimate) -> tuple[float, float]:
    return (margin.low, margin.high) if margin.mean >= 0 else (-margin.high, -margin.low)


def _edges(tuning: Tuning) -> list[str]:
    """Returns what to try where the grid, or a constraint, ends at the chosen strength."""
    star = tuning.choice.strength
    if finer := finer_range(tuning.choice):
        other, text = finer
        return [
            f"  constraints exclude the next strength, {format_strength(other)}: "
            f"add those between, --lambda={text}, to the sweep"
        ]
    lines = []
    for number, (wider, value) in enumerate(zip(_wider(tuning), star, strict=True), start=1):
        if wider:
            which = "λ*" if len(star) == 1 else f"λ* of aligned model {number}"
            if value == 0 == min(s[number - 1] for s in tuning.choosing.objective):
                lines.append(
                    f"  {which} is the reference: by this objective the alignment does not pay; "
                    f"strengths below 0 move further away from the aligned model ({wider})"
                )
                continue
            side = "largest" if value == max(s[number - 1] for s in tuning.choosing.objective) else "smallest"
            lines.append(
                f"  {which} is the {side} strength tried: the best may lie beyond; add {wider} to the sweep"
            )
    return lines


def _wider(tuning: Tuning) -> list[str | None]:
    """Returns the ranges beyond the grid, as the sweep's option where there is one aligned model."""
    ranges = wider_ranges(list(tuning.choosing.objective), tuning.choice.strength)
    return [r and (f"--lambda={r}" if len(ranges) == 1 else r) for r in ranges]


def show(value: Estimate) -> str:
    """Returns a mean with its interval, in two digits of half its width."""
    if math.isnan(value.low):
        return f"{value.mean:.3g}"
    half = value.half_width
    digits = min(max(1 - math.floor(math.log10(half)), 0), 6) if half > 0 else 3
    return f"{value.mean:z.{digits}f} [{value.low:z.{digits}f}, {value.high:z.{digits}f}]"


def format_retrained(retrained: Retrained, strength: Strength) -> str:
    """Returns what the model trained at β* shows, and what it does not."""
    star = format_strength(strength)
    lines = [
        f"retrained at β* = {rounded(retrained.beta)} ({shown(retrained.model)}), as it is on {retrained.prompts} "
        f"validation prompts: objective {show(retrained.objective)}"
    ]
    for other, difference in retrained.differences.items():
        name = f"DeRa at λ* = {star}" if other == strength else f"λ = {format_strength(other)}"
        lines.append(f"  less {name}, paired: {show(difference)}")
    lines += [f"  {shown(text)}: {_held(margin)}" for text, margin in retrained.margins.items()]
    return "\n".join([*lines, *_verdict(retrained, strength), f"  {NOT_COMPARED}", _cost(retrained.cost)])


def _verdict(retrained: Retrained, strength: Strength) -> list[str]:
    """Returns whether DeRa told what retraining gives, and whether retraining there was worth it."""
    predicted = retrained.differences[strength]
    told = "held, within the interval" if predicted.low <= 0 <= predicted.high else "did not hold"
    verdict = choice_verdict(retrained)
    return [f"  prediction: {told}", *([f"  choice: {verdict}"] if verdict else [])]


def choice_verdict(retrained: Retrained) -> str | None:
    """Returns whether training at β* was right: by the constraints, then against the aligned model."""
    missed = [text for text, margin in retrained.margins.items() if margin.high < 0]
    if missed:
        return f"wrong: the retrained model misses {shown(', '.join(missed))}"
    gained = retrained.differences.get((1.0,))
    if gained is None:
        return None
    if not retrained.aligned_allowed:
        if all(margin.low >= 0 for margin in retrained.margins.values()):
            return "right: the retrained model meets the constraints, which the aligned one misses"
        return "open: whether the retrained model meets the constraints, which the aligned one misses, is not sure"
    if gained.low > 0:
        return "right: the retrained model is better than the aligned one"
    if gained.high < 0:
        return "wrong: the retrained model is worse than the aligned one"
    return "open: the retrained model is neither surely better nor surely worse than the aligned one"


def _cost(cost: Cost) -> str:
    if cost.saved is None:
        return "cost: unknown, a manifest tells no training seconds"
    decoding = "" if cost.decoding is None else f"; decoding the sweep took {cost.decoding:.0f} s more"
    return (
        f"cost: 2 trainings, {cost.aligned + cost.retrained:.0f} s, against {cost.strengths} of a sweep over β, "
        f"about {cost.sweep_seconds:.0f} s at the mean of the two: {cost.saved:.0%} saved{decoding}"
    )


def tuning_to_json(
    tuning: Tuning, objective: Objective, constraints: Sequence[Constraint], targets: Sequence[Target]
) -> dict:
    """Returns all figures of a choice."""
    choice, star = tuning.choice, tuning.choice.strength
    return {
        "objective": {
            "label": objective.label,
            "reward": objective.reward,
            "kl_price": objective.kl_price,
            "against": None if objective.against is None else strength_to_json(objective.against),
        },
        "constraints": [each.text for each in constraints],
        "parts": {name: _part_extent(getattr(tuning, name)) for name in ("choosing", "validation")},
        "strengths": [_strength_to_json(tuning, strength) for strength in tuning.choosing.objective],
        "lambda": strength_to_json(star),
        "value": estimate_to_json(tuning.validation.objective[star]),
        "value_where_chosen": estimate_to_json(tuning.choosing.objective[star]),
        "differences": _by_text(tuning.differences),
        "margins": {text: estimate_to_json(margin) for text, margin in tuning.margins.items()},
        "share_of_resamples": choice.shares[star],
        "likely": list(map(strength_to_json, choice.likely)),
        "interval": choice.interval and list(choice.interval),
        "wider": wider_ranges(list(tuning.choosing.objective), star),
        "finer": (finer := finer_range(choice)) and finer[1],
        "beta": [target.beta for target in targets],
        "beta_star": [target.beta_star for target in targets],
        "no_beta_star": [target.reason or None for target in targets],
        "retrained": None,
    }


def _part_extent(part: Part) -> dict:
    return {"prompts": part.prompts, "completions_per_strength": part.completions}


def _by_text(estimates: dict[Strength, Estimate]) -> dict[str, dict]:
    return {format_strength(strength): estimate_to_json(value) for strength, value in estimates.items()}


def _strength_to_json(tuning: Tuning, strength: Strength) -> dict:
    def part(found: Part) -> dict:
        figures = {name: estimate_to_json(each[strength]) for name, each in found.figures.items()}
        return {"objective": estimate_to_json(found.objective[strength]), "figures": figures}

    return {
        "lambda": strength_to_json(strength),
        "choosing": part(tuning.choosing),
        "validation": part(tuning.validation),
        "allowed": tuning.choice.satisfied[strength],
        "share_of_resamples": tuning.choice.shares[strength],
    }


def retrained_to_json(retrained: Retrained, strength: Strength) -> dict:
    """Returns all figures of the model trained at β*."""
    cost = retrained.cost
    return {
        "beta": retrained.beta,
        "model": retrained.model,
        "prompts": retrained.prompts,
        "objective": estimate_to_json(retrained.objective),
        "less_dera": estimate_to_json(retrained.differences[strength]),
        "differences": _by_text({s: d for s, d in retrained.differences.items() if s != strength}),
        "margins": {text: estimate_to_json(margin) for text, margin in retrained.margins.items()},
        "choice": choice_verdict(retrained),
        "not_compared": NOT_COMPARED,
        "cost": vars(cost) | {"sweep_seconds": cost.sweep_seconds, "saved": cost.saved},
    }
