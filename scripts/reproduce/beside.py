"""What stands beside the matrix: inventions, two rewards, the cost, a strength for each prompt."""

from collections.abc import Mapping, Sequence

import numpy as np

from dera_jax.common.json_files import read_json
from dera_jax.data.records import load_records
from dera_jax.experiments.declare import Experiment, Step
from dera_jax.results.reading import read_rows
from scripts.reproduce import convergence, figures, training_length
from scripts.reproduce import evidence as ev
from scripts.reproduce import hallucination as ha
from scripts.reproduce import quantities as qu
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.rewards import inventions
from scripts.reproduce.runner import Folders, is_kept
from scripts.reproduce.spread import difference
from scripts.reproduce.subjects import Subject, show
from scripts.reproduce.verdicts import equivalence, fall

INVENTED = "e2e-invented"
VARIED = "stories-length-rloo"
"""Whose training is also made shorter and longer, and whose pair is decoded in other ways."""
MARGINS = {"length": 0.05, "sentiment": 0.05}
"""Of two rewards: of a share of texts, and of a mean rating."""


def sections(
    subjects: Sequence[Subject],
    lengths: Mapping[int, Experiment],
    others: Mapping[str, list[Step]],
    recipes: Recipes,
    folders: Folders,
) -> list[str]:
    """Returns the sections of the page."""
    by_name = {subject.name: subject for subject in subjects}
    lines = convergence.section(others[convergence.NAME], by_name, folders)
    if VARIED in by_name:
        lines += training_length.section(by_name[VARIED], lengths, folders)
    if INVENTED in by_name:
        lines += _invented(by_name[INVENTED], recipes, folders)
    lines += _two_rewards(others["two-rewards"], folders)
    lines += _extras(others["extras"], by_name.get(VARIED), folders)
    return lines


def of_experiment(subject: Subject, recipes: Recipes, folders: Folders) -> list[str]:
    """Returns what else the page of an experiment has."""
    if subject.name != INVENTED:
        return []
    known = ha.runs_of(folders.work / recipes.e2e.folder / "train.jsonl")
    return [
        "\n## One input at every strength\n",
        "The input with the most inventions over all strengths: the worst, not a typical one.\n",
        *ha.example(subject.evidence, known),
    ]


def _invented(subject: Subject, recipes: Recipes, folders: Folders) -> list[str]:
    """Returns the section of Fig. 4."""
    found = subject.evidence
    known = ha.runs_of(folders.work / recipes.e2e.folder / "train.jsonl")
    quantities = {
        "texts that invent": lambda row: -subject.reward(row),
        "inventions per slot said": _per_slot,
        "words copied": ha.copied_share(known),
        "slots said": subject.quality["slots"],
    }
    change = difference(
        ev.rows_at(found.dera, 1.0), ev.rows_at(found.dera, 0.0), quantities["texts that invent"]
    )
    per_slot = difference(ev.rows_at(found.dera, 1.0), ev.rows_at(found.dera, 0.0), _per_slot)
    return [
        "## Inventions (Fig. 4)\n",
        "Texts that say what is not in their input, and how that changes with λ. People do it in "
        f"{people(folders.work / recipes.e2e.folder / 'held_out.jsonl'):.1%} of their texts for the same inputs, by "
        f"the same detector. From λ = 0 to 1 the share changes by {show(change)} ({fall(change)}: falls), inventions "
        f"per slot said by {show(per_slot)} ({fall(per_slot)}: falls); one training. Words copied are those in runs "
        f"of {ha.RUN} that a training text has too.\n",
        *ha.rates(found, quantities),
        "",
    ]


def _per_slot(row: dict) -> float | None:
    """Returns how many inventions there are for each slot that is said; None where none is."""
    slots = qu.reward("slots")(row) * row["prompt"].count("[")
    return len(inventions(row["prompt"], row["completion"])) / slots if slots else None


def people(held_out) -> float:
    """Returns the share of people's texts that invent."""
    invented = [
        bool(inventions(record.fields["prompt"], text))
        for record in load_records(str(held_out))
        for text in record.fields["references"]
    ]
    return float(np.mean(invented))


def _two_rewards(steps: Sequence[Step], folders: Folders) -> list[str]:
    """Writes the figure of two rewards, if its grid was decoded; returns the section."""
    grid, *trained = steps
    if not is_kept(grid, folders):
        return []
    cells: dict[tuple, list[dict]] = {}
    for row in read_rows(folders.results / grid.folder):
        cells.setdefault(tuple(row["lambda"]), []).append(row)
    sums = {
        tuple(map(float, step.folder.rpartition("-")[2].split("+"))): read_rows(folders.results / step.folder)
        for step in trained
        if is_kept(step, folders)
    }
    rewards = {"length": qu.reward("length"), "sentiment": qu.reward("lexicon")}
    note = f"{min(map(len, cells.values())):,} completions each; labels: λ of length + λ of sentiment"
    path = folders.results / "figures" / "two-rewards.png"
    figures.save(
        path, [("Two rewards", figures.front(cells, sums, tuple(rewards.values())))], note, columns=1
    )
    lines = [
        "## Two rewards (Appendix B)\n",
        "![Two rewards](figures/two-rewards.png)\n",
        "Two aligned models, one for lengths and one for happy words, mixed at (λ₁, λ₂), against models trained on "
        "λ₁ r₁ + λ₂ r₂; DeRa minus trained, one training each. Bars: 95 % intervals over prompts; line: DeRa's Pareto "
        "front.\n",
        "| λ₁ + λ₂ | " + " | ".join(f"{name} | (± {MARGINS[name]:g})" for name in rewards) + " |",
        "|---|" + "--:|---|" * len(rewards),
    ]
    for at, rows in sorted(sums.items()):
        found = {
            name: difference(cells[at], rows, quantity) for name, quantity in rewards.items() if at in cells
        }
        told = " | ".join(
            f"{show(each)} | {equivalence(each, MARGINS[name])}" for name, each in found.items()
        )
        lines.append(f"| {at[0]:g} + {at[1]:g} | {told} |")
    return [*lines, ""]


def _extras(steps: Sequence[Step], pair: Subject | None, folders: Folders) -> list[str]:
    """Returns the section of what the paper states and does not measure."""
    cost, own = steps
    lines = ["## Stated there, measured here\n"]
    if is_kept(cost, folders):
        told = read_json(folders.results / cost.folder)["found"]
        ratio, sizes = told["ratio"], told["parameter_bytes"]
        lines.append(
            f"- **Twice the time and memory**: a pair takes {ratio['median']:.2f} times ({ratio['low']:.2f}–"
            f"{ratio['high']:.2f}) the time of one model for a token and {sizes['pair'] / sizes['one']:.2f} times its "
            f"parameters ({told['rows']} rows of stories260K, {told['device']})."
        )
    if pair is not None and is_kept(own, folders):
        known = {
            (row["prompt_id"], row["sample"], s): row
            for (s, seed), rows in pair.evidence.dera.items()
            if seed == 0
            for row in rows
        }
        rows = read_rows(folders.results / own.folder)
        pairs = [(row, known.get((row["prompt_id"], row["sample"], row["lambda"]))) for row in rows]
        same = [all(row[f] == other[f] for f in ("completion", "length")) for row, other in pairs if other]
        lines.append(
            f"- **A strength for each prompt**: in one batch of {len({row['lambda'] for row in rows})} strengths "
            f"{sum(same)} of {len(same)} completions are those of a batch of their strength alone, letter for letter. "
            "Whether a strength for each user is worth anything is not tested."
        )
    return [*lines, ""] if len(lines) > 1 else []
