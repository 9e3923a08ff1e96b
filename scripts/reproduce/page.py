"""The text of REPRODUCTION.md: claims with their findings, agreement, experiments, figures."""

from collections.abc import Sequence

from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce.subjects import Subject, Verdict, span


def page(
    subjects: Sequence[Subject],
    verdicts: Sequence[Verdict],
    drawn: Sequence[tuple[str, str]],
    missing: Sequence[str],
    told: Sequence[str],
    certified: Sequence[str] = (),
) -> str:
    """Returns REPRODUCTION.md.

    Args:
      told: lines behind the experiments.
      certified: those before them: how far the models are from their optimum.
    """
    lines = [INTRODUCTION]
    if missing:
        shown = ", ".join(missing[:12]) + (f" and {len(missing) - 12} more" if len(missing) > 12 else "")
        lines.append(
            f"**{len(missing)} measurements are not made yet**: {shown}. Incomplete experiments are left out; "
            "verdicts are of what is there.\n"
        )
    lines.append("## Claims\n\n| | claim | the paper | here |\n|--:|---|---|---|")
    lines += [f"| {v.number} | {v.claim} | {v.paper} | **{v.verdict}** |" for v in verdicts]
    for verdict in verdicts:
        lines.append(
            f"\n**{verdict.number}. {verdict.claim}**: {verdict.verdict} (holds if {verdict.holds_if}).\n"
        )
        lines += [f"- {finding}" for finding in verdict.ours] or ["- nothing measured yet"]
    lines.append("\n## Agreement of DeRa with retrained models\n")
    lines.append(
        "Mean |DeRa − retrained| over the strengths but 0 and 1 and up to 2, in % of the range of all means; "
        "beside it how far two trainings with different seeds are apart. Spearman's ρ is over all strengths whose "
        "retrained means differ by more than two standard errors.\n"
    )
    lines.append(
        "| experiment | quantity | error, % | seeds, % | Spearman (strengths) |\n|---|---|--:|--:|--:|"
    )
    lines += [line for subject in subjects for line in _agreement_lines(subject)]
    lines += certified
    lines.append(
        f"\n## Experiments\n\nMade on {_hardware(subjects)}, one core a process; times include other work on them.\n\n"
        "| name | experiment | seeds | completions | time | command |\n|---|---|--:|--:|--:|---|"
    )
    lines += map(_experiment_line, subjects)
    lines += told
    lines.append(LIMITS)
    lines.append("## Figures\n")
    lines += [f"![{caption}]({path})\n\n*{caption}*\n" for path, caption in drawn]
    return "\n".join(lines)


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


def _agreement_lines(subject: Subject) -> list[str]:
    found, lines = subject.evidence, []
    told = {"reward": subject.reward, "length": qu.length, "KL": qu.kl, **subject.quality}
    for name, quantity in told.items():
        gaps = {s: gap for s, gap in ev.gaps(found, quantity).items() if s <= 2}
        if not gaps:
            continue
        low, high = span(found, quantity)
        scale = high - low
        error = 100 * sum(abs(gap.mean) for gap in gaps.values()) / len(gaps) / scale
        noise, rank = ev.seed_noise(found.retrained, quantity), ev.rank_correlation(found, quantity)
        seeds = "" if noise is None else f"{100 * noise / scale:.1f}"
        lines.append(
            f"| {subject.name} | {name} | {error:.1f} | {seeds} | {f'{rank[0]:.2f} ({rank[1]})' if rank else ''} |"
        )
    return lines


def _experiment_line(subject: Subject) -> str:
    found = subject.evidence
    others = (found.retrained, found.combined)  # at 0 and 1 they are DeRa's own
    own = [found.dera, *({at: rows for at, rows in way.items() if at[0] not in (0.0, 1.0)} for way in others)]
    rows = sum(len(some) for way in own for some in way.values())
    seeds = len({seed for _, seed in found.retrained})
    command = f"`bash scripts/reproduce.sh {subject.name}`"
    cells = (
        subject.name,
        found.experiment.title,
        seeds,
        f"{rows:,}",
        f"{found.seconds / 60:.0f} min",
        command,
    )
    return f"| {' | '.join(map(str, cells))} |"


INTRODUCTION = """# The paper, reproduced small

Written by `bash scripts/reproduce.sh` from the rows beside it. Every experiment of arXiv:2402.02992 at a size that two
CPU cores can do, on real models and data; each claim with what was found, good or bad. Intervals are 95 %, by bootstrap
over prompts; they do not include what another training would change, which is told beside them where there are seeds.
A claim holds if every experiment that is counted passes what is written behind it, partly if some do, and fails if none
does; experiments go by the names of the table below. "Range" is how far an experiment's means reach up to λ = 2.
Findings that are *not counted* are of experiments whose aligned model's reward is not told apart from its reference's:
where nothing moved, nothing can agree. Claims 3 and 7 are of other qualities, and count them all.
"""

LIMITS = """
## What models this small can show, and what not

They can show what mixing does to distributions: rewards that are computed, lengths, KL, and whether a model retrained
at β/λ does the same. They cannot show what people prefer: on Anthropic HH a reward model of this size ranks held-out
pairs about as well as a bag of words, and no answer of stories260K is one a person would want. Claims 4 to 7 are
therefore tested where the truth is known: the gold reward is a lexicon's mean rating plus fluency under the untouched
model, and pairs are labelled by it with Bradley–Terry noise. That a lexicon is no reader is part of the bargain.

Alignments are short (58 to 240 steps), and none of the models with a length reward is at its optimum (above). That lies
at about 1.3 nats for every λ ≥ 1 and has nearly all of the reward: nearer to the reference than any of these models,
which have spent their KL on other things. How many steps there were, and the noise of the gradients, decide where a
retrained model lies, more than its β does (LOG.md). Both are of training, not of decoding.

A larger budget would buy seeds at every strength (here three at 0.5, 1 and 2 in the length rewards, else one), longer
trainings at smaller rates, and models that a judge can read; `--preset` has those of the paper.
"""
