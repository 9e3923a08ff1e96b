"""What is told of a run beside its table: warnings, the CSV of its summaries, its models."""

import csv
import io
import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.summaries import Summary, turns_of
from dera_jax.common.files import write_text
from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.results.manifests import manifest_path, read_manifest
from dera_jax.strengths import Strength, format_strength

FEW_ENDED = 0.5
SMALL_ESS = 0.1
"""Shares below which a summary comes with a warning."""


def warnings_of(summaries: Sequence[Summary], run: str | Path | None = None) -> list[str]:
    """Returns one line for each thing about the summaries that a reader could be misled by.

    Args:
      run: the folder that they are of, for commands.
    """
    return [
        f"λ = {', '.join(format_strength(summary.lambda_) for summary in of)}: {line}"
        for line, of in _warnings(summaries, run)
    ]


def _warnings(summaries: Sequence[Summary], run: str | Path | None = None) -> list[tuple[str, list[Summary]]]:
    """Returns lines, each with the summaries that it is about."""
    found = []
    if cut := [s for s in summaries if s.ended < FEW_ENDED]:
        share = _range([1 - s.ended for s in cut])
        found.append((f"{share} of the completions were cut off (--max-new-tokens)", cut))
    if uneven := [s for s in summaries if s.ess is not None and s.ess < SMALL_ESS]:
        line = (
            f"effective sample size is {_range([s.ess for s in uneven])} of the completions: "
            "estimates weighted to the sequence-level mixture are unreliable"
        )
        found.append((line, uneven))
    if certain := [s for s in summaries if s.copies]:
        line = (
            f"{sum(s.copies for s in certain)} of {sum(s.n for s in certain)} completions are copies, drawn with "
            "certainty (--temperature=0): more samples of a prompt say nothing more"
        )
        found.append((line, certain))
    for name in dict.fromkeys(name for s in summaries for name in (*s.scored, *s.unscored)):
        if without := {s.lambda_: count for s in summaries if (count := s.unscored.get(name))}:
            line = f"reward {shown(name, 200)} was not computed for {_share_of(without, summaries)}"
            found.append(
                (f"{line}{f': {filling(run, name)} does it' if run else ''}", _those(summaries, without))
            )
        unknown = {s.lambda_: s.n - s.scored.get(name, s.n) - s.unscored.get(name, 0) for s in summaries}
        if without := {strength: count for strength, count in unknown.items() if count > 0}:
            line = f"reward {shown(name, 200)} was not computed for {_share_of(without, summaries)}"
            found.append((line, _those(summaries, without)))
    return found


def _those(summaries: Sequence[Summary], strengths: Collection[Strength]) -> list[Summary]:
    return [summary for summary in summaries if summary.lambda_ in strengths]


def _share_of(counts: Mapping[Strength, int], summaries: Sequence[Summary]) -> str:
    n = sum(summary.n for summary in _those(summaries, counts))
    return f"{sum(counts.values())} of {n} completions"


def filling(run: str | Path, name: str) -> str:
    """Returns the command that computes a reward for the rows of a run that lack it.

    Raises:
      ValueError: the manifest is broken.
    """
    manifest = read_manifest(run) if manifest_path(run).exists() else {}
    words = [str(run)]
    if name in manifest.get("judges", {}):
        words += ["--judge=URL,MODEL", f"--question={name}"]
    else:
        prompts = manifest.get("extent", {}).get("prompts")
        columns = prompts and name.partition(":")[0] in ("python", "slots")
        words += [f"--reward={name}", *([f"--prompts={prompts}"] if columns else [])]
    return " ".join([spelled("score"), *(shlex.quote(shown(word)) for word in words)])


def _range(shares: Sequence[float]) -> str:
    """Returns shares as `50%`, or as `50% to 70%`."""
    return " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))


def reduce_to_csv_rows(summaries: Sequence[Summary]) -> list[dict]:
    """Returns one flat dict per strength, all with the same columns; what is unknown is ""."""
    names = dict.fromkeys(name for summary in summaries for name in summary.rewards)
    rows = []
    for summary in summaries:
        row = {
            "lambda": format_strength(summary.lambda_),
            "beta": summary.beta,
            "beta_over_lambda": summary.beta_effective,
            "n": summary.n,
            "prompts": summary.prompts,
        }
        for name in names:
            row |= _columns(f"reward_{name}", summary.rewards.get(name))
            row |= _columns(f"reward_{name}_minus_aligned", summary.reward_differences.get(name))
            row[f"reward_{name}_n"] = summary.scored.get(name, 0)
            for turn in turns_of(summaries, name):
                value = summary.turn_rewards.get(name, {}).get(turn)
                row |= _columns(f"reward_{name}_turn_{turn + 1}", value)
        row |= _columns("kl_to_reference", summary.kl_to_reference)
        row |= _columns("length", summary.length)
        row |= _columns("log_ratio", summary.log_ratio)
        row |= {"ended": summary.ended, "effective_sample_share": summary.ess, "tokens": summary.tokens}
        for name in dict.fromkeys(name for each in summaries for name in each.exact):
            row[f"exact_{name}"] = summary.exact.get(name, math.nan)
        row["warning"] = "; ".join(line for line, _ in _warnings([summary]))
        rows.append({harmless(column): _cell(value) for column, value in row.items()})
    return rows


def _columns(name: str, value: Estimate | None) -> dict:
    value = value or Estimate(math.nan, math.nan, math.nan)
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def _cell(value):
    """Returns numbers in 6 digits, as text; what is unknown as ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return (
        f"{value:.6g}" if isinstance(value, float) else harmless(value) if isinstance(value, str) else value
    )


_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?inf", re.ASCII)


def harmless(text: str) -> str:
    r"""Returns a text as a cell that no spreadsheet takes for a formula, its control characters as escapes.

    >>> harmless("=1+1"), harmless("-0.5"), harmless("-0.5+1")
    ("'=1+1", '-0.5', "'-0.5+1")
    """
    formula = text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and not _PLAIN_NUMBER.fullmatch(text)
    return "'" * formula + shown(text)


def write_summary_csv(path: str | Path, summaries: Sequence[Summary]) -> None:
    """Writes `reduce_to_csv_rows` as CSV, whole or not at all.

    Raises:
      ValueError: there are no summaries, or the file cannot be written.
    """
    if not summaries:
        raise ValueError(f"cannot write {shown(path, 200)}: there are no rows to summarize")
    rows = reduce_to_csv_rows(summaries)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    write_text(path, text.getvalue())


def describe_models(run: str | Path) -> str:
    """Returns the models of a run, `reference → aligned (int8)`; nothing where it has no manifest."""
    manifest = read_manifest(run) if manifest_path(run).exists() else {"identity": {}}
    names = [model["name"] for model in manifest.get("provenance", {}).get("models", [])]
    kinds = manifest["identity"].get("quantization") or [None] * len(names)
    reference, *aligned = [_short(*both) for both in zip(names, kinds, strict=True)] or [""]
    return f"{reference} → {', '.join(aligned)}" if aligned else reference


def _short(model: str, quantization: str | None) -> str:
    """Returns the last names of a model's folders."""
    name = shown("+".join(Path(part).name for part in model.split("+")), 100)
    return f"{name} ({shown(quantization, 20)})" if quantization else name
