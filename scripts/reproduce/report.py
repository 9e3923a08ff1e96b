"""REPRODUCTION.md, the pages of its experiments and its figures, written from the rows."""

from collections.abc import Mapping
from pathlib import Path

from dera_jax.common.files import make_folder, write_text
from dera_jax.experiments.declare import Experiment, Step
from scripts.reproduce import beside
from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce.certificates import certificate_lines, certificates_of, nearest
from scripts.reproduce.claims import CLAIMS
from scripts.reproduce.decomposition import decompose
from scripts.reproduce.details import details
from scripts.reproduce.drawing import draw_all
from scripts.reproduce.evidence import Evidence
from scripts.reproduce.page import page
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.runner import Folders, is_kept, make_step
from scripts.reproduce.settings import BANDS
from scripts.reproduce.subjects import Subject
from scripts.reproduce.verdicts import SIGNS, Cell


def write_report(
    experiments: Mapping[str, Experiment],
    lengths: Mapping[int, Experiment],
    others: Mapping[str, list[Step]],
    recipes: Recipes,
    folders: Folders,
) -> None:
    """Writes the figures and pages in the folder of results.

    Args:
      lengths: the first experiment stopped early, with other numbers of steps.
    """
    read = {name: ev.read_evidence(experiment, folders) for name, experiment in experiments.items()}
    # Half an experiment would be judged by the strengths that happen to be there.
    found = {name: evidence for name, evidence in read.items() if not evidence.missing}
    subjects = [subject_of(evidence, recipes, folders) for evidence in found.values()]
    matrix = {subject.name: answers(subject) for subject in subjects}
    known = [subject for subject in subjects if subject.has_optimum]
    taken_apart = {subject.name: decompose(subject) for subject in known}
    missing = [step for evidence in read.values() for step in evidence.missing]
    missing += [step.folder for steps in others.values() for step in steps if not is_kept(step, folders)]
    text = page(
        subjects,
        matrix,
        taken_apart,
        draw_all(subjects, matrix, taken_apart, folders.results),
        nearest(known),
        certificate_lines(known),
        beside.sections(subjects, lengths, others, recipes, folders),
        missing,
    )
    for subject in subjects:
        told = beside.of_experiment(subject, recipes, folders)
        certified = certificates_of(subject) if subject.has_optimum else []
        of_one = details(subject, matrix[subject.name], taken_apart.get(subject.name, []), certified, told)
        make_folder(folders.results / "experiments")
        write_text(folders.results / "experiments" / f"{subject.name}.md", of_one)
    write_text(folders.results / "REPRODUCTION.md", text)
    _tell(matrix, folders.results / "REPRODUCTION.md")


def answers(subject: Subject) -> dict[str, Cell]:
    """Returns what an experiment says of each claim, by its title."""
    return {claim.title: claim.ask(subject) for claim in CLAIMS}


def _tell(matrix: Mapping[str, Mapping[str, Cell]], path: Path) -> None:
    """Prints how the claims stand."""
    print(f"{path}: {len(CLAIMS)} claims, {len(matrix)} experiments")
    for claim in CLAIMS:
        verdicts = [cells[claim.title].verdict for cells in matrix.values()]
        counts = "  ".join(f"{sign} {verdicts.count(verdict)}" for verdict, sign in SIGNS.items())
        print(f"  {counts}  {claim.title}")


def subject_of(evidence: Evidence, recipes: Recipes, folders: Folders) -> Subject:
    """Returns an experiment with what it is judged by."""
    name = evidence.experiment.name
    beta = evidence.experiment.beta
    if name.startswith("e2e"):
        make_step(recipes.e2e, folders)
        references = ev.references_of(folders.work / recipes.e2e.folder / "held_out.jsonl")
        trained = qu.reward("length" if name in BANDS else "python")
        quality = {"slots": qu.reward("slots"), "BLEU of a text": qu.sentence_bleu(references)}
        objective = qu.both(trained, qu.reward("slots"))
        return Subject(evidence, trained, quality, objective, "reward + slots", name in BANDS)
    known = qu.known_words(qu.words_of(Path(recipes.stories_file.path(folders.data))))
    quality = {"likelihood": qu.likelihood, "known words": known}
    if name.startswith("stories"):
        quality["variety"] = qu.variety
        trained = qu.reward("length")
        return Subject(
            evidence, trained, quality, qu.less(trained, beta, qu.kl), f"reward − {beta:g} · KL", True
        )
    if name.startswith("gold"):
        return Subject(evidence, qu.gold, quality, qu.gold, "gold reward")
    judge = qu.reward_by(evidence.experiment.decoding["reward"][0].step.folder)
    return Subject(evidence, judge, {"likelihood": qu.likelihood}, judge, "the judge's reward")
