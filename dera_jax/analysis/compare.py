"""Two runs, completion by completion: how often a judge prefers A's, at each strength, with intervals."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from dera_jax.analysis.estimates import Estimate, estimate, estimate_to_json
from dera_jax.analysis.tables import Column, estimate_cells, format_columns, strength_cells
from dera_jax.results.missing import Cell, cell_of, cell_order, find_missing, tell_cells
from dera_jax.rewards.judges import Judge, Pair, RewardJudge, Verdict, parse_judge, same_text
from dera_jax.rewards.registry import Reward
from dera_jax.strengths import Strength, format_strength, strength_from_json, strength_to_json


@dataclass(frozen=True)
class Comparison:
    """What a judge says of A at one strength against B at one strength."""

    lambda_: Strength
    """Of A."""
    against: Strength
    """Of B."""
    win_rate: Estimate | None
    """Share of the pairs with a verdict in which A is preferred, ties half; None if there are none."""
    n: int
    """Pairs with a verdict; wins + ties + losses."""
    wins: int
    ties: int
    losses: int
    failures: int
    """Pairs without one."""
    identical: int
    """Pairs of equal completions, which tie."""
    missing: int
    """Cells that only one of the two has, or none, and some other strength has."""
    first: float | None
    """Share that went to what was shown first: ½ for a judge to whom the order means nothing."""


@dataclass(frozen=True)
class Match:
    """The pairs of completions of A at one strength and of B at one."""

    lambda_: Strength
    against: Strength
    pairs: list[Pair]
    missing: int


def compare(
    rows_a: Sequence[dict],
    rows_b: Sequence[dict],
    judge: Judge | Reward | str,
    *,
    lambdas: Sequence[Strength] | None = None,
    against: Strength | None = None,
    allow_missing: bool = False,
    names: tuple[str, str] = ("A", "B"),
) -> list[Comparison]:
    """Returns how A's completions fare against B's of the same prompt, sample and turn, strength by strength.

    The interval is that of drawing prompts. A and B may be the same rows, with `against`.

    Args:
      rows_a: see `results.folder`; also rows_b.
      judge: see `judges`; or a reward; or what `parse_judge` reads.
      lambdas: strengths of A; None takes all.
      against: strength of B for all of them; None takes the same one.
      allow_missing: whether cells that are not in both are left out, or refused.
      names: of A and B, for errors.

    Raises:
      ValueError: other prompts, missing cells or strengths; or the judge fails.
    """
    matches = match(rows_a, rows_b, lambdas, against, allow_missing, names)
    if isinstance(judge, str):
        judge = parse_judge(judge)
    elif isinstance(judge, Reward):
        judge = RewardJudge(judge)
    verdicts = iter(judge([pair for each in matches for pair in each.pairs]))
    return [_comparison(each, [next(verdicts) for _ in each.pairs]) for each in matches]


def match(
    rows_a: Sequence[dict],
    rows_b: Sequence[dict],
    lambdas: Sequence[Strength] | None = None,
    against: Strength | None = None,
    allow_missing: bool = False,
    names: tuple[str, str] = ("A", "B"),
) -> list[Match]:
    """Returns the pairs that `compare` has judged, a match for each strength of A.

    Raises:
      ValueError: other prompts, missing cells or strengths.
    """
    a, b = _by_strength(rows_a, names[0]), _by_strength(rows_b, names[1])
    _check_prompts(rows_a, rows_b, names)
    lambdas = sorted(a) if lambdas is None else list(dict.fromkeys(lambdas))
    _check_strengths(names[0], lambdas, a)
    others = lambdas if against is None else [against] * len(lambdas)
    if against is not None or not allow_missing:
        _check_strengths(names[1], others, b)
    pairs = list(zip(lambdas, others, strict=True))
    expected = {cell for s, t in pairs for cell in [*a[s], *b.get(t, ())]}
    if not allow_missing:
        _refuse_missing(names[0], expected, {s: a[s] for s in lambdas})
        _refuse_missing(names[1], expected, {t: b[t] for t in others})
    found = []
    for s, t in pairs:
        # In an order of their own: intervals then do not depend on that of the rows.
        cells = sorted(a[s].keys() & b.get(t, {}).keys(), key=cell_order)
        both = [(a[s][cell], b[t][cell]) for cell in cells]
        found.append(Match(s, t, both, len(expected) - len(both)))
    if not any(each.pairs for each in found):
        raise ValueError(f"{names[0]} and {names[1]} have no prompt, sample and strength in common")
    return found


def _by_strength(rows: Sequence[dict], name: str) -> dict[Strength, dict[Cell, dict]]:
    """Returns the rows of each strength by cell."""
    if not rows:
        raise ValueError(f"{name}: no rows yet")
    found: dict[Strength, dict[Cell, dict]] = defaultdict(dict)
    for row in rows:
        found[strength_from_json(row["lambda"])][cell_of(row)] = row
    return dict(found)


def _check_prompts(rows_a: Sequence[dict], rows_b: Sequence[dict], names: tuple[str, str]) -> None:
    """Raises ValueError where the runs answer other prompts."""
    # Later turns have the answers before them in their prompts.
    a, b = (
        {row["prompt_id"]: row["prompt"] for row in rows if not row.get("turn", 0)}
        for rows in (rows_a, rows_b)
    )
    common = [prompt_id for prompt_id in a if prompt_id in b]
    if not common:
        first_a, first_b = (next(iter(each), None) for each in (a, b))
        raise ValueError(
            f"{names[0]} and {names[1]} have no prompt in common: the first are {first_a!r} and {first_b!r}"
        )
    for prompt_id in common:
        if a[prompt_id] != b[prompt_id]:
            in_a, in_b = _difference(_text(a[prompt_id]), _text(b[prompt_id]))
            raise ValueError(
                f"other prompts: prompt {prompt_id!r} is {in_a} in {names[0]} and {in_b} in {names[1]}"
            )


def _text(prompt: str | list) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _difference(a: str, b: str, width: int = 50) -> tuple[str, str]:
    """Returns both texts, from shortly before the first character in which they differ."""
    same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - width // 3)

    def part(text: str) -> str:
        shown = text[start : start + width]
        return f"{'…' * (start > 0)}{shown!r}{'…' * (start + width < len(text))}"

    return part(a), part(b)


def _check_strengths(name: str, strengths: Sequence[Strength], there: dict) -> None:
    """Raises ValueError where a run has not the rows of a strength."""
    for strength in strengths:
        if strength not in there:
            listed = ", ".join(map(format_strength, sorted(there)))
            raise ValueError(f"{name} has no rows of λ = {format_strength(strength)}; it has {listed}")


def _refuse_missing(name: str, expected: set[Cell], there: Mapping[Strength, Collection[Cell]]) -> None:
    """Raises ValueError where a run lacks cells of what is expected at each of its strengths."""
    if lacking := find_missing(there, expected):
        raise ValueError(
            f"{name}: {tell_cells(lacking)}; complete the run, or --allow-missing compares what both have"
        )


def _comparison(match: Match, verdicts: Sequence[Verdict]) -> Comparison:
    judged = [
        (v.win, pair[0]["prompt_id"])
        for v, pair in zip(verdicts, match.pairs, strict=True)
        if v.win is not None
    ]
    wins = [win for win, _ in judged]
    firsts = [v.first for v in verdicts if v.first is not None]
    return Comparison(
        lambda_=match.lambda_,
        against=match.against,
        win_rate=estimate(wins, [prompt_id for _, prompt_id in judged]) if judged else None,
        n=len(judged),
        wins=wins.count(1.0),
        ties=wins.count(0.5),
        losses=wins.count(0.0),
        failures=len(verdicts) - len(judged),
        identical=sum(same_text(*pair) for pair in match.pairs),
        missing=match.missing,
        first=sum(firsts) / len(firsts) if firsts else None,
    )


def format_comparisons(comparisons: Sequence[Comparison], style: str = "terminal") -> str:
    """Returns a table with a row per strength; `style` as in `tables.format_table`."""

    def counts(heading: str, count: Callable[[Comparison], int], always: bool = True) -> list[Column]:
        values = list(map(count, comparisons))
        return [Column(heading, list(map(str, values)))] if always or any(values) else []

    return format_columns(
        [
            Column("λ", strength_cells([each.lambda_ for each in comparisons])),
            Column("λ of B", strength_cells([each.against for each in comparisons])),
            Column("win rate of A", estimate_cells([each.win_rate for each in comparisons])),
            *counts("n", lambda each: each.n),
            *counts("wins", lambda each: each.wins),
            *counts("ties", lambda each: each.ties),
            *counts("losses", lambda each: each.losses),
            *counts("failures", lambda each: each.failures),
            *counts("missing", lambda each: each.missing, always=False),
        ],
        style,
    )


def comparison_to_json(comparison: Comparison) -> dict:
    """Returns what a file holds of a comparison."""
    fields = dict(vars(comparison))
    return {
        "lambda": strength_to_json(fields.pop("lambda_")),
        "against": strength_to_json(fields.pop("against")),
        "win_rate": (rate := fields.pop("win_rate")) and estimate_to_json(rate),
        **fields,
    }
