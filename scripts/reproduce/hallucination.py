"""Fig. 4: what is invented and what is copied, in one example and over the test set."""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.data.records import load_records
from scripts.reproduce import evidence as ev
from scripts.reproduce.evidence import Evidence, Quantity
from scripts.reproduce.rewards import inventions

RUN = 8
"""Words in a row that a training text has too, from which on they count as copied."""


def runs_of(path: Path) -> set[tuple[str, ...]]:
    """Returns every run of words in the completions of a file of training data."""
    texts = (record.fields["completion"].split() for record in load_records(str(path)))
    return {tuple(words[n : n + RUN]) for words in texts for n in range(len(words) - RUN + 1)}


def copied_share(known: set[tuple[str, ...]]) -> Quantity:
    """Returns the share of a text's words that stand in runs copied from training texts, in [0, 1]."""
    return lambda row: (
        float(sum(_copied(row["completion"].split(), known))) / max(1, len(row["completion"].split()))
    )


def _copied(words: Sequence[str], known: set[tuple[str, ...]]) -> list[bool]:
    marks = [False] * len(words)
    for n in range(len(words) - RUN + 1):
        if tuple(words[n : n + RUN]) in known:
            marks[n : n + RUN] = [True] * RUN
    return marks


def example(found: Evidence, known: set[tuple[str, ...]]) -> list[str]:
    """Returns lines of Markdown: one input at every strength, copied words in italics, inventions beside it.

    The input is the one with the most inventions over all strengths, so it is no typical one.
    """
    first = {s: {r["prompt_id"]: r for r in rows if r["sample"] == 0} for (s, _), rows in found.dera.items()}
    shared = set.intersection(*(set(rows) for rows in first.values()))

    def count(prompt: str) -> int:
        return sum(
            len(inventions(rows[prompt]["prompt"], rows[prompt]["completion"])) for rows in first.values()
        )

    chosen = max(sorted(shared), key=count)
    asked = next(iter(first.values()))[chosen]["prompt"]
    lines = [f"`{asked}`\n", "| λ | text (_copied from training texts_) | invented |", "|--:|---|---|"]
    for strength in sorted(first):
        row = first[strength][chosen]
        words = row["completion"].split()
        told = " ".join(_italic(words, _copied(words, known)))
        new = ", ".join(
            f"**{value}** ({slot})" for slot, value in inventions(row["prompt"], row["completion"])
        )
        lines.append(f"| {strength:.3g} | {told} | {new} |")
    return lines


def _italic(words: Sequence[str], marks: Sequence[bool]) -> list[str]:
    """Returns words with _ where a marked run begins and ends."""
    shown = []
    for n, (word, mark) in enumerate(zip(words, marks, strict=True)):
        begins = mark and not (n and marks[n - 1])
        ends = mark and not (n + 1 < len(marks) and marks[n + 1])
        shown.append("_" * begins + word.replace("|", "\\|").replace("_", "\\_") + "_" * ends)
    return shown


def rates(found: Evidence, quantities: dict[str, Quantity]) -> list[str]:
    """Returns lines of Markdown: means over the test set at every strength, with 95 % intervals."""
    lines = ["| λ | " + " | ".join(quantities) + " |", "|--:" * (len(quantities) + 1) + "|"]
    for strength, seed in sorted(found.dera):
        if seed == 0:
            means = [ev.mean(found.dera[strength, 0], quantity) for quantity in quantities.values()]
            lines.append(
                f"| {strength:.3g} | "
                + " | ".join(f"{m.mean:.3f} ± {m.half_width:.3f}" for m in means)
                + " |"
            )
    return lines
