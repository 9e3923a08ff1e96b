"""The page of one experiment: what it is, every answer with its numbers, the gap taken apart."""

from collections.abc import Mapping, Sequence

from scripts.reproduce.claims import CLAIMS
from scripts.reproduce.decomposition import Parts, decomposition_lines
from scripts.reproduce.page import trainings
from scripts.reproduce.subjects import Subject
from scripts.reproduce.verdicts import Cell

TAKEN_APART = """
## The gap taken apart

DeRa − retrained = per-token error (DeRa − Eq. 5 of the same pair) + the aligned model's training error (Eq. 5 −
optimum) + that of the retrained model (optimum − retrained). The interval is of prompts and trainings; noise is one
standard error of the gap. Eq. 5 comes from weights, which say little of KL where few completions carry them."""


def details(
    subject: Subject,
    cells: Mapping[str, Cell],
    taken_apart: Sequence[Parts],
    certified: Sequence[str],
    beside: Sequence[str],
) -> str:
    """Returns the page."""
    found = subject.evidence.experiment
    lines = [
        f"# {subject.name}\n",
        f"{found.title}; β = {found.beta:g} at λ = 1; trainings of a strength: {trainings(subject)}. "
        f"`bash scripts/reproduce.sh {subject.name}` makes it. "
        "[All experiments](../REPRODUCTION.md).\n",
        "| claim | | found |",
        "|---|:-:|---|",
    ]
    lines += [
        f"| {claim.title} | {cells[claim.title].sign} | {cells[claim.title].finding} |"
        for claim in CLAIMS
        if claim.title in cells
    ]
    if taken_apart:
        effective = [parts.effective for parts in taken_apart]
        lines += [TAKEN_APART, *decomposition_lines(subject, taken_apart)]
        lines.append(
            f"\nThe weights of a prompt's completions are worth {max(effective):.1f} to {min(effective):.1f} of them."
        )
    return "\n".join([*lines, *certified, *beside, ""])
