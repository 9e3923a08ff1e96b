"""REPRODUCTION.md: what agrees and what does not, in five lines, a matrix, and a figure for each group of claims."""

from collections.abc import Mapping, Sequence

import numpy as np

from scripts.reproduce.claims import CLAIMS
from scripts.reproduce.decomposition import PARTS, Parts
from scripts.reproduce.drawing import Drawn
from scripts.reproduce.subjects import Subject
from scripts.reproduce.verdicts import AGREES, CANNOT, DISAGREES, SIGNS, UNDECIDED, Cell, Claim

Matrix = Mapping[str, Mapping[str, Cell]]
"""By experiment and title of a claim."""


def page(
    subjects: Sequence[Subject],
    matrix: Matrix,
    taken_apart: Mapping[str, Sequence[Parts]],
    drawn: Sequence[Drawn],
    near: Mapping[str, float],
    certified: Sequence[str],
    beside: Sequence[str],
    missing: Sequence[str],
) -> str:
    """Returns REPRODUCTION.md.

    Args:
      taken_apart: decompositions by experiment.
      near: experiments whose aligned models are near their optimum, and how far from it, in nats.
      certified: the table of how far models are from their optimum.
      beside: sections of what has another shape.
    """
    lines = ["# The paper, reproduced small\n", *in_five_lines(matrix, taken_apart, near), ""]
    if missing:
        shown = ", ".join(missing[:12]) + (f" and {len(missing) - 12} more" if len(missing) > 12 else "")
        lines.append(
            f"**{len(missing)} measurements are not made yet**: {shown}. Their experiments are left out.\n"
        )
    lines += ["## Claims and experiments\n", *matrix_lines(matrix), "", LEGEND, "", *counted(matrix), ""]
    lines += [f"## {each.title}\n\n![{each.title}]({each.path})\n\n{each.caption}\n" for each in drawn]
    lines += [*certified, *beside, DEFINITIONS, *experiment_lines(subjects), LIMITS]
    return "\n".join(lines)


def in_five_lines(
    matrix: Matrix, taken_apart: Mapping[str, Sequence[Parts]], near: Mapping[str, float]
) -> list[str]:
    """Returns what a reader wants to know first, made from the verdicts and the decompositions."""
    answers = [cell for cells in matrix.values() for cell in cells.values() if cell.verdict != CANNOT]
    single = sum(cell.single for cell in answers)
    return [
        in_short(matrix, near),
        "",
        *(f"- **{head}**: {_listed(matrix, kind)}." for kind, head in KINDS.items()),
        f"- **Why**: {why(taken_apart, near)}",
        f"- **What to do**: {advice(matrix)}",
        f"- **How sure this is**: {len(answers)} answers, of which {single} rest on one training (¹). Models are "
        "small, rewards are computed by a program, and most alignments stopped long before their optimum; what perfect "
        "training would give is [computed on a chain](../chain/README.md). Margins were fixed after the first report "
        "of the early-stopped experiments.",
    ]


KINDS = {
    "for": "Claims that hold here",
    "against": "Claims that do not hold here",
    "mixed": "Mixed",
    "undecided": "Mostly undecided",
    "new": "New here",
}
"""How experiments may stand to a claim, and the heads of their lists."""
UP_TO_2 = ("reward, λ < 1", "reward, 1 < λ ≤ 2")
"""Titles of the paper's first claim."""


def in_short(matrix: Matrix, near: Mapping[str, float]) -> str:
    """Returns the answer to the paper's first claim, of all experiments and of those near their optimum."""

    def told(some: Matrix) -> str:
        verdicts = [verdict for claim in UP_TO_2 for verdict in _verdicts(some, claim)]
        return (
            f"{verdicts.count(AGREES)} of {len(verdicts)} answers say yes, {verdicts.count(DISAGREES)} say no, "
            f"{verdicts.count(UNDECIDED)} are undecided"
        )

    close = {name: cells for name, cells in matrix.items() if name in near}
    return (
        "**In short**: is mixing the logits of a reference and an aligned model with strength λ (DeRa, "
        "arXiv:2402.02992) as good as training anew with the KL strength β/λ? Asked of the reward up to λ = 2, to "
        f"within a tenth of its range, {told(matrix)}."
        + (f" Of the models that are nearest to their optimum, {told(close)}." if close else "")
    )


def _kind(claim: Claim, verdicts: Sequence[str]) -> str:
    """Returns how experiments stand to what the paper says: for, against, mixed, undecided (most), new or silent."""
    if not verdicts:
        return "silent"
    if claim.expected is None:
        return "new"
    if 2 * verdicts.count(UNDECIDED) > len(verdicts):
        return "undecided"
    against = DISAGREES if claim.expected == AGREES else AGREES
    said, denied = claim.expected in verdicts, against in verdicts
    return {(True, False): "for", (False, True): "against"}.get((said, denied), "mixed")


def _listed(matrix: Matrix, kind: str) -> str:
    """Returns the claims that experiments stand to in one way, as the paper has them, and how many say so."""
    told = []
    for claim in CLAIMS:
        verdicts = _verdicts(matrix, claim.title)
        if _kind(claim, verdicts) == kind:
            told.append(f"{claim.denied or claim.sentence} ({_said(verdicts, bool(claim.denied))})")
    return "; ".join(told) or "nothing"


def _said(verdicts: Sequence[str], denied: bool) -> str:
    """Returns how many experiments say what a sentence says, or deny it where `denied`: not what ✓ and ✗ count.

    >>> _said(["agrees", "disagrees", "disagrees"], denied=True)
    '2 say so, 1 says otherwise'
    """
    so, otherwise = (DISAGREES, AGREES) if denied else (AGREES, DISAGREES)
    counts = {"so": verdicts.count(so), "otherwise": verdicts.count(otherwise)}
    told = [f"{count} say{'s' * (count == 1)} {what}" for what, count in counts.items() if count]
    left = verdicts.count(UNDECIDED)
    return ", ".join([*told, f"{left} undecided"] if left else told)


def why(taken_apart: Mapping[str, Sequence[Parts]], near: Mapping[str, float]) -> str:
    """Returns what the gaps of the rewards of lengths are made of, up to λ = 2: near the optimum, and far from it."""
    told = []
    for close in (True, False):
        names = [name for name, some in taken_apart.items() if (name in near) == close and some]
        every = [parts for name in names for parts in taken_apart[name] if parts.strength <= 2]
        if every:
            shown = [f"{name}, {near[name]:.2f} nats from it" if close else name for name in names]
            told.append((_near if close else _far)("; ".join(shown), every))
    return " ".join(told) or "no experiment has an optimum that is known."


def _near(names: str, every: Sequence[Parts]) -> str:
    token = _sides([(parts.strength, parts.parts("reward")[PARTS[0]]) for parts in every])
    aligned, retrained = (_size(every, part) for part in PARTS[1:])
    return (
        f"nearest to the optimum ({names}), the reward of DeRa minus that of retrained models is {_gaps(every)}. "
        f"Mixing token by token contributes {token}. The rest is the difference of two training errors: the mixture of "
        f"whole responses misses the reward of the optimum of β/λ by {aligned:.2f} on average, retrained models by "
        f"{retrained:.2f}."
    )


def _far(names: str, every: Sequence[Parts]) -> str:
    token, aligned, retrained = (_size(every, part) for part in PARTS)
    return (
        f"With trainings that stopped early ({names}), the difference is {_gaps(every)}. Its parts are larger than "
        f"itself: on average the two training errors have the size {aligned:.2f} and {retrained:.2f}, mixing token by "
        f"token {token:.3f}. Such trainings stop after a number of steps, before β determines the result. All of this "
        "is for rewards of lengths, up to λ = 2; numbers are means over strengths. For the gold reward no optimum is "
        "known, so nothing says why the two differ."
    )


def _size(every: Sequence[Parts], part: str) -> float:
    return float(np.mean([abs(each.parts("reward")[part]) for each in every]))


def _gaps(every: Sequence[Parts]) -> str:
    return _sides([(parts.strength, parts.total["reward"].estimate.mean) for parts in every])


def _sides(values: Sequence[tuple[float, float]]) -> str:
    """Returns the means and ranges of values below and above λ = 1."""
    sides = {"below": [v for s, v in values if s < 1], "above": [v for s, v in values if s > 1]}
    return " and ".join(f"{_range(some)} {side} λ = 1" for side, some in sides.items() if some)


def _range(values: Sequence[float]) -> str:
    return f"{np.mean(values):+z.3f} ({min(values):+z.3f} to {max(values):+z.3f} over strengths)"


def advice(matrix: Matrix) -> str:
    """Returns what a user should do, by the verdicts."""
    choice, base = _verdicts(matrix, "choice of strength"), _verdicts(matrix, "better than the base")
    astray = {
        "do not read KL off it": ("KL, λ < 1", "KL, 1 < λ ≤ 2"),
        "do not go far beyond λ = 2, where rewards and texts may break": ("reward, λ > 2",),
    }
    titles = ("better than the base", "choice of strength")
    told = {name: [cells[t].verdict for t in titles if t in cells] for name, cells in matrix.items()}
    both = [name for name, verdicts in told.items() if verdicts == [AGREES, DISAGREES]]
    warnings = [
        text
        for text, claims in astray.items()
        if any(DISAGREES in _verdicts(matrix, claim) for claim in claims)
    ]
    return (
        "use λ to see which way to go, and retrain once there before you believe a number. Retraining at DeRa's choice "
        f"was better than the base β in {base.count(AGREES)} of {len(base)} experiments, worse in "
        f"{base.count(DISAGREES)}, and the others are undecided; its choice was about the best one in "
        f"{choice.count(AGREES)} of {len(choice)} and not in {choice.count(DISAGREES)}"
        + (f"; in {' and '.join(both)} it was better and yet not the best." if both else ".")
        + (f" But {' and '.join(warnings)}." if warnings else "")
    )


def _verdicts(matrix: Matrix, title: str) -> list[str]:
    """Returns what the experiments say of a claim, those that can say anything."""
    cells = [cells[title] for cells in matrix.values() if title in cells]
    return [cell.verdict for cell in cells if cell.verdict != CANNOT]


def matrix_lines(matrix: Matrix) -> list[str]:
    """Returns the table of claims and experiments; names of experiments lead to their pages."""
    heads = [f"[{name}](experiments/{name}.md)" for name in matrix]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + ":-:|" * len(heads)]
    for claim in CLAIMS:
        signs = [
            cells[claim.title].sign if claim.title in cells else SIGNS[CANNOT] for cells in matrix.values()
        ]
        lines.append(f"| {claim.title} | {' | '.join(signs)} |")
    return lines


def counted(matrix: Matrix) -> list[str]:
    """Returns each claim with what the paper has, what makes it agree, and how many do."""
    lines = ["| claim | the paper | agrees if | ✓ | ✗ | ? |", "|---|---|---|--:|--:|--:|"]
    for claim in CLAIMS:
        verdicts = [cells[claim.title].verdict for cells in matrix.values() if claim.title in cells]
        counts = (str(verdicts.count(verdict)) for verdict in (AGREES, DISAGREES, UNDECIDED))
        lines.append(
            f"| **{claim.title}**: {claim.sentence} | {claim.paper} | {claim.test} | {' | '.join(counts)} |"
        )
    return lines


def experiment_lines(subjects: Sequence[Subject]) -> list[str]:
    """Returns the table of experiments."""
    lines = [
        "\n## Experiments\n",
        f"Made on {_hardware(subjects)}, one core a process; times include other work on them. "
        "`bash scripts/reproduce.sh NAME` makes one.\n",
        "| name | experiment | β at λ = 1 | trainings of a strength | completions | time |",
        "|---|---|--:|--:|--:|--:|",
    ]
    return lines + list(map(_experiment_line, subjects))


def _hardware(subjects: Sequence[Subject]) -> str:
    """Returns what the manifests say of the machines."""
    made = (
        m["provenance"]
        for subject in subjects
        for m in subject.evidence.manifests.values()
        if "provenance" in m
    )
    seen = {(told["device"], told["platform"].partition("-")[0], told["versions"]["jax"]) for told in made}
    return "; ".join(f"{device} ({system}), JAX {version}" for device, system, version in sorted(seen))


def _experiment_line(subject: Subject) -> str:
    found = subject.evidence
    others = (found.retrained, found.combined)  # at 0 and 1 they are DeRa's own
    own = [found.dera, *({at: rows for at, rows in way.items() if at[0] not in (0.0, 1.0)} for way in others)]
    cells = (
        f"[{subject.name}](experiments/{subject.name}.md)",
        found.experiment.title,
        f"{found.experiment.beta:g}",
        trainings(subject),
        f"{sum(len(some) for way in own for some in way.values()):,}",
        f"{found.seconds / 60:.0f} min",
    )
    return f"| {' | '.join(map(str, cells))} |"


def trainings(subject: Subject) -> str:
    """Returns how many trainings there are of a strength, as the rows have it.

    >>> from types import SimpleNamespace
    >>> trainings(SimpleNamespace(evidence=SimpleNamespace(retrained={(0.5, 0): [], (0.5, 1): [], (2.0, 0): []})))
    '2 at 0.5, else 1'
    """
    seeds: dict[float, int] = {}
    for strength, _ in subject.evidence.retrained:
        if strength:
            seeds[strength] = seeds.get(strength, 0) + 1
    several = {s: count for s, count in sorted(seeds.items()) if count > 1}
    if not several:
        return "1" if seeds else "0"
    most = max(several.values())
    at = ", ".join(f"{s:g}" for s, count in several.items() if count == most)
    return f"{most} at {at}" + (", else 1" if len(several) < len(seeds) else "")


LEGEND = (
    "✓ agrees, ✗ disagrees, ? undecided, – cannot say (nothing measured, or the alignment moved nothing); ¹ one "
    "training, whose own spread is not in the interval. Each answer with its numbers is on the page of its experiment."
)
DEFINITIONS = """
## Definitions

- **λ**: the strength when decoding: next-token logits are (1 − λ) · reference + λ · aligned. λ = 0 is the reference, 1
  the aligned model. **β**: the weight of the KL penalty in training. DeRa at λ stands for a model trained at β/λ
  (Eq. 3).
- **Retrained**: a model trained anew at β/λ, from the same reference, data and number of steps. **Optimum**: the policy
  that maximizes E[r] − β/λ · KL (Eq. 2), from completions of the reference by their weights exp(λ r/β).
- **Eq. 5**: the mixture of whole responses, π_ref^(1−λ) π_aligned^λ / Z, which DeRa approximates word by word (Eq. 6).
- **Reward**: of lengths, 0 in the band and −1 outside of it; *invented*, 0 if a text says nothing that its input does
  not, else −1; *gold*, mean rating of the words in a lexicon (−4 to 4) plus log-probability per token under the
  untouched model (nats). **KL**: of a completion to the reference, in nats. **Range**: how far the means of an
  experiment reach up to λ = 2.
- **Interval**: 95 %, of prompts and trainings together (t, Welch and Satterthwaite). **Agrees**, for a difference: its
  interval lies within ± the margin; **disagrees**: it lies outside, on one side; **undecided**: it lies across the
  margin. For a rise or a fall: agrees if the interval lies on the claimed side of 0; disagrees if it lies on the other
  side, or rules out a change large enough to matter; else undecided. For Spearman's ρ: at least the bound, or below it.
  ✓ means that the sentence of the claim holds here, which need not be good news. **Noise floor**: the mean |difference|
  that chance alone gives.
- **Objective**, by which a strength is chosen: reward less β · KL for lengths on stories, reward plus slots said on
  E2E, the gold reward elsewhere."""
LIMITS = """
## What models this small can show, and what not

They can show what mixing does to distributions: rewards that are computed, lengths, KL, and whether a model retrained
at β/λ does the same. They cannot show what people prefer: on Anthropic HH a reward model of this size ranks held-out
pairs as well as a bag of words does, and its alignments move no reward. Preferences are therefore tested where the
truth is known: pairs of the reference's own texts are labelled by the gold reward with Bradley–Terry noise. A lexicon
cannot judge a text as a reader would.

The two `stories-converged` experiments share their trained models, so their answers are not independent of each other.
Intervals are of single answers: of 20 differences that are 0, one is expected to lie outside of its own.

What was chosen after looking: the recipe of `stories-converged`, by certificates and not by gaps; the gold reward's
second part, DPO's batch and rate and the reward model's recipe were changed after a first run in which gold rose with
every strength; `gold-dpo-weak` was added, with a larger rate too, so that a case with too small a β exists. That was
on the first half of the held-out openings, with one training of each β, and with pairs that ended with the end-of-text
token, which texts of this reference seldom do. The gold experiments shown here were made once, afterwards: on the other
half, with three trainings of some β, and with pairs that end with a line break, as texts are drawn. After that
`gold-dpo-weak` at λ = 1 had about the reward of the reference, so whether an alignment moved its reward is asked at any
strength up to 1 since, no longer at 1 alone. Margins were fixed after the first report of the early-stopped
experiments, from the paper's figures. Trainings were added to `stories-length-rloo` and to `stories-length-ppo`, from
three to six and to five at λ = 0.5, 1 and 2, after reports in which about half of their answers were undecided.
"""
