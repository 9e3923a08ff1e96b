"""REPRODUCTION.md and its figures, written from the rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dera_jax.common.files import write_text
from dera_jax.common.json_files import read_json
from dera_jax.experiments.declare import Experiment, Step
from dera_jax.results.reading import read_rows
from scripts.reproduce import claims, figures
from scripts.reproduce import evidence as ev
from scripts.reproduce import hallucination as ha
from scripts.reproduce import quantities as qu
from scripts.reproduce.certificates import certificate_lines
from scripts.reproduce.evidence import Evidence
from scripts.reproduce.page import page
from scripts.reproduce.recipes import BANDS, Recipes
from scripts.reproduce.runner import Folders, is_kept, make_step
from scripts.reproduce.subjects import Subject, Verdict, span

QUALITIES = {3, 7}
"""Claims of what nobody paid for, which may change where the reward does not."""
LONGEST = 120
"""Tokens in histograms, at most."""
UNITS = {
    "likelihood": "nats per token",
    "known words": "share of a text's words",
    "variety": "share of word pairs not said before",
    "slots": "share of the input's slots",
    "BLEU of a text": "BLEU, 0 to 100",
    "invented": "0 nothing invented, −1 something",
}
"""Of what nobody paid for, and of inventions."""


def write_report(
    experiments: Mapping[str, Experiment],
    others: Mapping[str, list[Step]],
    recipes: Recipes,
    folders: Folders,
) -> None:
    """Writes the figures and REPRODUCTION.md in the folder of results."""
    read = {name: ev.read_evidence(experiment, folders) for name, experiment in experiments.items()}
    # Half an experiment would be judged by the strengths that happen to be there.
    found = {name: evidence for name, evidence in read.items() if not evidence.missing}
    subjects = [_subject(evidence, recipes, folders) for evidence in found.values()]
    verdicts = [
        _verdict(test, _meant(subjects, number), moved=number not in QUALITIES)
        for number, test in enumerate(claims.OF_SUBJECTS, start=1)
    ]
    verdicts += _extras(others["extras"], found, folders)
    drawn = [draw for subject in subjects for draw in _draw(subject, folders.results)]
    drawn += _two_rewards(others["two-rewards"], folders)
    drawn += _agreement(subjects, folders.results)
    missing = [step for evidence in read.values() for step in evidence.missing]
    missing += [step.folder for steps in others.values() for step in steps if not is_kept(step, folders)]
    told = [line for subject in subjects for line in _invented(subject, recipes, folders)]
    certified = certificate_lines([subject for subject in subjects if subject.name in BANDS])
    text = page(subjects, verdicts, drawn, missing, told, certified)
    write_text(folders.results / "REPRODUCTION.md", text)
    print(f"{folders.results / 'REPRODUCTION.md'}: {len(verdicts)} claims, {len(drawn)} figures")
    for verdict in verdicts:
        print(f"  {verdict.number:>2}  {verdict.verdict:<15} {verdict.claim}")


def _verdict(
    test: Callable[[list[Subject]], Verdict], subjects: list[Subject], *, moved: bool = True
) -> Verdict:
    """Returns the verdict of the experiments, if `moved` of those whose reward did, with the findings of all."""
    counted = [subject for subject in subjects if subject.moved or not moved]
    verdict, others = test(counted), test([subject for subject in subjects if subject not in counted])
    return replace(verdict, ours=[*verdict.ours, *(f"{line} (not counted)" for line in others.ours)])


def _meant(subjects: Sequence[Subject], number: int) -> list[Subject]:
    """Returns the experiments that can say something of a claim."""
    lengths = {1, 2, 3}
    preferences = {5, 6}
    return [
        subject
        for subject in subjects
        if (number not in lengths or subject.name in BANDS)
        and (number not in preferences or subject.name not in BANDS)
    ]


def _subject(evidence: Evidence, recipes: Recipes, folders: Folders) -> Subject:
    """Returns an experiment with what it is judged by."""
    name = evidence.experiment.name
    beta = evidence.experiment.beta
    if name.startswith("e2e"):
        make_step(recipes.e2e, folders)
        references = ev.references_of(folders.work / recipes.e2e.folder / "held_out.jsonl")
        trained = qu.reward("length" if name in BANDS else "python")
        quality = {"slots": qu.reward("slots"), "BLEU of a text": qu.sentence_bleu(references)}
        return Subject(
            evidence, trained, quality, qu.both(trained, qu.reward("slots")), "reward + slot coverage"
        )
    known = qu.known_words(qu.words_of(Path(recipes.stories_file.path(folders.data))))
    quality = {"likelihood": qu.likelihood, "known words": known}
    if name.startswith("stories"):
        quality["variety"] = qu.variety
        trained = qu.reward("length")
        return Subject(evidence, trained, quality, qu.less(trained, beta, qu.kl), f"reward − {beta:g} · KL")
    if name.startswith("gold"):
        return Subject(evidence, qu.gold, quality, qu.gold, "gold reward")
    judge = qu.reward_by(evidence.experiment.decoding["reward"][0].step.folder)
    return Subject(evidence, judge, {"likelihood": qu.likelihood}, judge, "the judge's reward")


def _invented(subject: Subject, recipes: Recipes, folders: Folders) -> list[str]:
    """Returns the lines of Fig. 4: one input at every strength, and the rates over the test set."""
    if subject.name != "e2e-invented":
        return []
    known = ha.runs_of(folders.work / recipes.e2e.folder / "train.jsonl")
    shown = {
        "invented": lambda row: -subject.reward(row),
        "copied words": ha.copied_share(known),
        "slots": subject.quality["slots"],
    }
    return [
        "\n## Fig. 4: one input at every strength\n",
        *ha.example(subject.evidence, known),
        "\nOver the test set: texts that say what is not in their input, words in runs of eight that a training text "
        "has too, and slots said.\n",
        *ha.rates(subject.evidence, shown),
    ]


def _draw(subject: Subject, results: Path) -> list[tuple[str, str]]:
    """Writes an experiment's figures and returns their files with captions."""
    found, name = subject.evidence, subject.name
    note = _note(found)
    drawn = []

    def save(figure: str, caption: str, panels: Sequence[tuple[str, figures.Draw]], columns: int = 3) -> None:
        path = results / "figures" / f"{figure}-{name}.png"
        figures.save(path, panels, note, columns)
        drawn.append((str(path.relative_to(results)), f"{caption} ({found.experiment.title})"))

    if name in BANDS:
        shown = [s for s in (0.0, 0.4, 0.8, 1.0, 1.4, 2.0) if (s, 0) in found.dera]
        by = {way: {s: ev.rows_at(rows, s) for s in shown if (s, 0) in rows} for way, rows in _both(found)}
        drawn_lengths = [ev.lengths(rows) for each in by.values() for rows in each.values()]
        longest = min(LONGEST, max(map(max, drawn_lengths)))
        save(
            "fig2",
            "Fig. 2: length reward and lengths",
            [
                ("(a) reward", figures.ways(found, subject.reward, "mean reward", weighted=True)),
                *(
                    (f"({letter}) lengths, {way}", figures.histograms(rows, BANDS[name], longest))
                    for letter, (way, rows) in zip("bc", by.items(), strict=True)
                ),
            ],
        )
        panels = [
            (f"({x}) {n}", figures.ways(found, q, UNITS.get(n, n)))
            for x, (n, q) in zip("abc", subject.quality.items(), strict=False)
        ]
        judge_name, judge = next(iter(subject.quality.items()))
        panels.append(
            (
                f"({'abcd'[len(panels)]}) judged by {judge_name}",
                figures.wins(found, judge, 0.0, "win rate against λ = 0"),
            )
        )
        save("fig5", "Fig. 5: what the reward costs", panels, columns=2 if len(panels) == 4 else 3)
    elif found.retrained and found.experiment.retrained:
        save(
            "fig3",
            "Fig. 3 and 7: win rates",
            [
                ("(a) against λ = 0", figures.wins(found, subject.objective, 0.0, "win rate")),
                ("(b) against λ = 1", figures.wins(found, subject.objective, 1.0, "win rate")),
                ("(c) DeRa against retrained", figures.wins(found, subject.objective, None, "win rate")),
                ("(d) reward", figures.ways(found, subject.reward, "mean reward")),
                ("(e) likelihood, untouched model", figures.ways(found, qu.likelihood, "nats per token")),
                ("(f) pair accuracy (Fig. 6)", figures.accuracies(found)),
            ],
        )
    else:
        save(
            "fig4",
            "Fig. 4: what is invented",
            [
                (n, figures.ways(found, q, UNITS.get(n, n)))
                for n, q in (("invented", subject.reward), *subject.quality.items())
            ],
        )
    if found.experiment.combined and len(found.combined) > 2:
        panels = [
            ("(a) reward", figures.ways(found, subject.reward, "mean reward", combined=True)),
            ("(b) KL to the reference", figures.ways(found, qu.kl, "nats", combined=True)),
            *(
                (f"(c) {n}", figures.ways(found, q, UNITS.get(n, n), combined=True))
                for n, q in list(subject.quality.items())[:1]
            ),
        ]
        save("fig8", "Fig. 8: logits against weights", panels)
    return drawn


def _both(found: Evidence):
    return ("retrained", found.retrained), ("DeRa", found.dera)


def _note(found: Evidence) -> str:
    rows = [len(some) for some in found.dera.values()]
    prompts = len({row["prompt_id"] for some in found.dera.values() for row in some})
    seeds = len({seed for _, seed in found.retrained})
    several = f"{seeds} seeds (lines: the first; points: the others)" if seeds > 1 else "1 seed"
    return (
        f"n = {min(rows):,} completions of {prompts} prompts per strength and seed; {several}; "
        "bars: 95 % intervals, bootstrap over prompts"
    )


def _agreement(subjects: Sequence[Subject], results: Path) -> list[tuple[str, str]]:
    """Writes the Bland–Altman plot of all experiments with retrained models."""
    points = []
    for subject in subjects:
        found = subject.evidence
        for quantity in (subject.reward, qu.length, *subject.quality.values()):
            gaps = {s: gap.mean for s, gap in ev.gaps(found, quantity).items() if s <= 2}
            theirs = ev.curve(found.retrained, quantity)
            # A range that is noise is no measure of a gap.
            if len(gaps) < 2 or len(ev.told_apart(theirs)) < 2:
                continue
            low, high = span(found, quantity)
            for strength, gap in gaps.items():
                middle = theirs[strength].mean + gap / 2
                points.append((subject.name, 100 * (middle - low) / (high - low), 100 * gap / (high - low)))
    if not points:
        return []
    path = results / "figures" / "agreement.png"
    note = (
        f"{len(points)} pairs of means: reward, length, quality at strengths up to 2, where retraining changed them; "
        "dashed: mean ± 1.96 sd"
    )
    figures.save(path, [("Bland–Altman", figures.bland_altman(points))], note, columns=1)
    return [("figures/agreement.png", "Agreement of DeRa with retrained models (Bland–Altman)")]


def _two_rewards(steps: Sequence[Step], folders: Folders) -> list[tuple[str, str]]:
    """Writes the figure of Appendix B, if its grid was decoded."""
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
    both = qu.reward("length"), qu.reward("lexicon")
    path = folders.results / "figures" / "two-rewards.png"
    note = (
        f"n = {min(map(len, cells.values())):,} completions each; labels: λ of length + λ of sentiment; "
        "bars: 95 % intervals over prompts; line: DeRa's Pareto front"
    )
    figures.save(path, [("Appendix B", figures.front(cells, sums, both))], note, columns=1)
    return [("figures/two-rewards.png", "Appendix B: two rewards, mixed and trained on their weighted sum")]


def _extras(steps: Sequence[Step], found: Mapping[str, Evidence], folders: Folders) -> list[Verdict]:
    cost, own = steps
    costs = read_json(folders.results / cost.folder)["found"] if is_kept(cost, folders) else None
    rows = read_rows(folders.results / own.folder) if is_kept(own, folders) else []
    pair = found.get("stories-length-rloo")
    fixed = {s: some for (s, seed), some in pair.dera.items() if seed == 0} if pair else {}
    return [claims.twice_the_cost(costs), claims.strength_per_prompt(rows, fixed)]
