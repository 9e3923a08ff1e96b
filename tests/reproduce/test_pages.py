"""Pages say what the rows say: the report's answers, and the figures that other pages take from it."""

import re
from pathlib import Path

import pytest

from dera_jax.analysis.optimum import optimum_of
from scripts.reproduce import convergence, runner
from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce.certificates import NAME, certificate_lines, certificates, judged
from scripts.reproduce.claims import CLAIMS
from scripts.reproduce.decomposition import QUANTITIES, decompose, decomposition_lines
from scripts.reproduce.figures import rewarded
from scripts.reproduce.page import in_five_lines
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.settings import BANDS
from scripts.reproduce.subjects import Subject
from scripts.reproduce.training_length import STEPS, of_lengths, points_of, table
from scripts.reproduce.verdicts import AGREES, CANNOT, DISAGREES, UNDECIDED, Cell

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/reproduction"
EXPERIMENTS = Recipes().experiments()
OF_WORDS = {"quality falls, DeRa", "quality falls, retrained", "text falls apart"}
"""Claims that need texts beside the rows."""


def read(name):
    found = ev.read_evidence(EXPERIMENTS[name], runner.Folders(Path("nowhere"), RESULTS))
    if name.startswith("gold"):
        return Subject(found, qu.gold, {}, qu.gold, "gold reward")
    reward, beta = qu.reward("length"), found.experiment.beta
    if name.startswith("e2e"):
        return Subject(found, reward, {}, qu.both(reward, qu.reward("slots")), "reward + slots", True)
    return Subject(found, reward, {}, qu.less(reward, beta, qu.kl), f"reward − {beta:g} · KL", True)


@pytest.mark.parametrize("name", ["stories-length-ppo", "gold-dpo"])
def test_the_page_of_an_experiment_has_the_answers_of_its_rows(name):
    subject, page = read(name), (RESULTS / f"experiments/{name}.md").read_text()
    matrix = (RESULTS / "REPRODUCTION.md").read_text()
    head = next(line for line in matrix.splitlines() if line.startswith("| | ["))
    column = [re.sub(r"\[(.*)\]\(.*\)", r"\1", cell.strip()) for cell in head.split("|")].index(name)
    for claim in CLAIMS:
        if claim.title not in OF_WORDS:
            cell = claim.ask(subject)
            assert f"| {claim.title} | {cell.sign} | {cell.finding} |" in page
            line = next(line for line in matrix.splitlines() if line.startswith(f"| {claim.title} |"))
            assert line.split("|")[column].strip() == cell.sign


def test_the_page_has_the_gaps_and_certificates_of_the_rows():
    subject = read("stories-length-rloo")
    page = (RESULTS / "experiments/stories-length-rloo.md").read_text()
    every = decompose(subject)
    for line in decomposition_lines(subject, every):
        assert line in page
    for parts in every:
        for name in QUANTITIES:
            total = parts.total[name].estimate.mean
            assert sum(parts.parts(name).values()) == pytest.approx(total, abs=1e-9)
    report = (RESULTS / "REPRODUCTION.md").read_text()
    for line in certificate_lines([subject])[1:]:
        assert line in report
    assert all(each.distance.low > 0 for each in certificates(subject))


def test_the_page_has_the_gaps_of_other_lengths_of_training():
    subject, folders = read("stories-length-rloo"), runner.Folders(Path("nowhere"), RESULTS)
    points = points_of(subject, of_lengths(subject.evidence.experiment), folders)
    own = subject.evidence.experiment.training.options["max_steps"]
    assert list(points) == sorted({*STEPS, own})
    report = (RESULTS / "REPRODUCTION.md").read_text()
    for line in table(points):
        assert line in report
    for point in points.values():
        assert all(each.distance.low > 0 for each in point.certificates.values())
        for parts in point.parts.values():
            total = parts.total["reward"].estimate.mean
            assert sum(parts.parts("reward").values()) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("step", convergence.trainings(Recipes()), ids=lambda step: step.folder)
def test_the_page_has_how_near_trainings_come(step):
    """The gain and the distance are of one certificate, and no policy gains more than the best one of its KL."""
    folders = runner.Folders(Path("nowhere"), RESULTS)
    assert runner.is_kept(step, folders)
    course = convergence.course_of(step, folders)
    subject = read(convergence.SAME[course.name])
    best = convergence.best_gain(
        optimum_of(judged(subject.evidence.dera[0.0, 0], subject), NAME, 0.5), course.kl
    )
    assert 0 < course.gain < best and 0 < course.distance.mean < course.distances[-1]
    assert f"- {convergence.told(course, best)}" in (RESULTS / "REPRODUCTION.md").read_text().splitlines()


@pytest.mark.parametrize("name", list(BANDS))
def test_the_band_of_a_figure_is_where_the_reward_is(name):
    """A paragraph's line break counts as a token of its length, and not in the reward."""
    low, high = BANDS[name]
    more = int(name.startswith("stories"))
    rows = [row for some in read(name).evidence.dera.values() for row in some]
    assert rewarded(rows, qu.reward("length")) == (low + more, high + more)


@pytest.mark.parametrize("page", ["README.md", "docs/guides/reproduction.md"])
def test_figures_of_other_pages_are_the_reports(page):
    """Every number with an interval stands on the page of an experiment, word for word."""
    text = (ROOT / page).read_text()
    told = " ".join(path.read_text() for path in sorted((RESULTS / "experiments").glob("*.md")))
    found = re.findall(r"[-+]?\d+\.\d+\s\[[-+]?\d+\.\d+,\s[-+]?\d+\.\d+\]", text)
    assert len(found) >= 4
    for figure in found:
        assert " ".join(figure.split()) in told, figure


def test_what_pages_point_to_is_there():
    for page in (*(RESULTS / "experiments").glob("*.md"), RESULTS / "REPRODUCTION.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_the_first_lines_tell_verdicts_as_the_paper_has_them():
    """Where a denial is expected it is counted as for the paper."""
    first, beyond, new = "reward, λ < 1", "reward, λ > 2", "logits over weights, λ > 2"
    matrix = {
        "a": {first: Cell(AGREES, ""), beyond: Cell(DISAGREES, ""), new: Cell(AGREES, "")},
        "b": {first: Cell(UNDECIDED, ""), beyond: Cell(DISAGREES, "")},
        "c": {first: Cell(UNDECIDED, "", single=True), beyond: Cell(CANNOT, "")},
    }
    short, _, agreed, _, _, undecided, fresh, *_, sure = in_five_lines(matrix, {}, {"a": 0.1})
    assert "1 of 3 answers say yes, 0 say no, 2 are undecided" in short
    assert "nearest to their optimum, 1 of 1 answers say yes" in short
    assert "no longer has the reward of retrained models (2 say so)" in agreed
    assert undecided.startswith("- **Mostly undecided**") and fresh.startswith("- **New here**")
    assert "retrained models below λ = 1 (1 says so, 2 undecided)" in undecided
    assert "beyond 2 (1 says so)" in fresh
    assert "6 answers, of which 1 rest on one training" in sure
