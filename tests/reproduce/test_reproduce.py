"""The reproduction: only what is missing is made, and evidence is what the rows say."""

import csv
import fcntl
import json
import lzma
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dera_jax.analysis import summaries
from dera_jax.common.files import ASSETS
from dera_jax.common.json_files import read_json
from dera_jax.data.records import load_records
from dera_jax.experiments.declare import Experiment, Step
from dera_jax.results.reading import read_rows
from dera_jax.results.rows import sort_rows
from scripts.reproduce import data as recipe_data
from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce import runner, spread, subjects
from scripts.reproduce.certificates import certificates
from scripts.reproduce.convergence import course_of, section, told
from scripts.reproduce.recipes import Recipes
from scripts.reproduce.rewards import invented, inventions
from scripts.reproduce.smoke import shrink
from tests.support.steps import MADE

ROOT = Path(__file__).parents[2]
PAIR = Experiment(
    name="toy",
    title="the shipped pair",
    reference=str(ASSETS / "toy/reference"),
    training=Step("train.rlhf", "", {}),
    beta=0.1,
    strengths=(0.0, 1.0),
    decoding={"prompts": "toy", "num_prompts": 2, "max_new_tokens": 8, "reward": "length:2:6"},
    aligned_model=str(ASSETS / "toy/aligned"),
)


@pytest.fixture
def folders(tmp_path):
    MADE.clear()
    return runner.Folders(tmp_path / "work", tmp_path / "results")


def test_rows_are_kept_and_made_once(folders, capsys):
    sweep = PAIR.dera()
    runner.make([sweep], folders)
    assert runner.is_kept(sweep, folders)
    first = (folders.results / sweep.folder / "rows.jsonl.xz").read_bytes()
    assert not (folders.work / sweep.folder).exists()  # the copy is the one
    capsys.readouterr()
    runner.make([sweep], folders)
    assert "python -m" not in capsys.readouterr().out
    assert str(folders.work) not in (folders.results / sweep.folder / "manifest.json").read_text()
    found = ev.read_evidence(PAIR, folders)
    assert {s for s, _ in found.dera} == {0.0, 1.0} and not found.missing
    assert (folders.results / sweep.folder / "rows.jsonl.xz").read_bytes() == first


def test_kept_rows_are_lean_and_say_the_same(folders):
    sweep = replace(PAIR, decoding={**PAIR.decoding, "lambda": "0.6666666666666666,1"}).dera()
    runner.make_step(sweep, folders)
    made = read_rows(folders.work / sweep.folder)
    runner.make([sweep], folders)
    kept = read_rows(folders.results / sweep.folder)
    assert len(kept) == 4 and {row["lambda"] for row in kept} == {2 / 3, 1.0}
    for row, lean in zip(sort_rows(made), kept, strict=True):
        assert row.keys() - lean.keys() == {"tokens", "prompt_tokens"}
        assert summaries.drawn_tokens(lean) == len(row["tokens"])
        sums = {name for name, value in lean.items() if isinstance(value, float)} - {"lambda"}
        assert {"logprob", "kl_to_reference", "log_normalizer"} <= sums
        for name, value in lean.items():
            assert value == (pytest.approx(row[name], rel=1e-5) if name in sums else row[name])


def test_another_command_is_another_measurement(folders):
    runner.make([PAIR.dera()], folders)
    more = replace(PAIR, decoding={**PAIR.decoding, "num_prompts": 3})
    assert not runner.is_kept(more.dera(), folders)
    assert ev.read_evidence(more, folders).missing == ["toy/dera-seed=0"]


def test_what_trainings_measured_is_kept(folders):
    first = Step("tests.support.steps:touch", "first", {"text": "a"})
    second = Step("tests.support.steps:touch", "second", {"text": first / "text.txt"})
    sweep = Step("eval.sweep", "sweep", {"aligned": second})
    runner.make_step(second, folders)
    (folders.work / "first/metrics.jsonl").write_text('{"step": 1}\n')
    runner.keep_making(runner.lineage(sweep, "aligned"), folders)
    kept = folders.results / "first/metrics.jsonl.xz"
    assert lzma.decompress(kept.read_bytes()) == b'{"step": 1}\n'
    assert not (folders.results / "second").exists()


def test_a_training_may_be_what_is_measured(folders, capsys):
    """Its metrics and its certificate are kept, and make the curve of how far it was from its optimum."""
    sizes = {"max_steps": 2, "batch_size": 8, "num_samples": 4, "max_new_tokens": 8}
    toy = {"model": str(ASSETS / "toy/reference"), "data": "toy", "reward": "length:2:6", "beta": 0.5}
    step = Step("train.rlhf", "convergence/toy", toy | sizes | {"ema_decay": 0.5})
    runner.make([step], folders)
    kept = folders.results / step.folder
    assert {path.name for path in kept.iterdir()} == {"training_manifest.json", "metrics.jsonl.xz"}
    assert str(folders.work) not in (kept / "training_manifest.json").read_text()
    capsys.readouterr()
    runner.make([step], folders)
    assert "python -m" not in capsys.readouterr().out
    course = course_of(step, folders)
    best = read_json(kept / "training_manifest.json")["certificate"]["best"]["mean"]
    rows = [
        json.loads(line) for line in lzma.decompress((kept / "metrics.jsonl.xz").read_bytes()).splitlines()
    ]
    each = [(best - (row["reward"] - 0.5 * row["kl"])) / 0.5 for row in rows]
    assert course.steps.tolist() == [2] and course.distances == pytest.approx([np.mean(each)])
    assert f"- {told(course, None)}" in section([step], {}, folders)
    assert (folders.results / "figures/convergence.png").exists()
    assert section([step], {}, runner.Folders(folders.work, folders.work / "nothing")) == []


def test_rows_that_pairs_are_made_of_are_kept(folders):
    """Once, compressed, and without this machine's folders."""
    drawn = Step("eval.sweep", "samples", {"lambda_": "0"})
    row = {
        "prompt_id": 0,
        "sample": 0,
        "turn": 0,
        "lambda": 0.0,
        "prompt": "p",
        "completion": "c",
        "rewards": {},
    }
    made = folders.work / "samples/rows.jsonl"
    made.parent.mkdir(parents=True)
    recipe_data.write_rows(made, [row | {"prompt": f"{folders.work}/x"}])
    for _ in range(2):
        runner.keep_making([drawn], folders)
    assert read_rows(folders.results / "samples") == [row | {"prompt": "WORK/x"}]


def test_steps_are_made_in_order_and_not_again(folders):
    first = Step("tests.support.steps:touch", "first", {"text": "a"})
    second = Step("tests.support.steps:touch", "second", {"text": first / "text.txt"})
    runner.make_step(second, folders)
    runner.make_step(second, folders)
    assert MADE[-2:] == ["first", "second"]
    assert (folders.work / "second/text.txt").read_text() == f"{folders.work}/first/text.txt"
    assert read_json(folders.work / "first/step.json")["command"][0] == first.command


def test_what_another_process_makes_is_left_to_it(folders):
    step = Step("tests.support.steps:touch", "first", {"text": "a"})
    (folders.work / "locks").mkdir(parents=True)
    with open(folders.work / "locks/first", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(runner.Busy):
            runner.make_step(step, folders)
    runner.make_step(step, folders)


def test_a_failed_command_stops_with_its_line(folders, capsys):
    wrong = replace(PAIR, decoding={**PAIR.decoding, "reward": "longness"})
    with pytest.raises(SystemExit):
        runner.make([wrong.dera()], folders)
    assert "unknown reward" in capsys.readouterr().err
    assert not runner.is_kept(wrong.dera(), folders)


def test_every_recipe_has_a_small_one():
    for experiment in Recipes().experiments().values():
        small = shrink(experiment)
        assert small.retrained == () or 1 <= len(list(small.trials())) <= 4
        for step in small.measurements():
            assert not step.command.startswith("train.")
            for need in step.needs():
                if need.command.startswith("train."):
                    assert need.options["max_steps"] <= 2


def row(prompt, sample, value, strength=0.5, **more):
    return {"prompt_id": prompt, "sample": sample, "lambda": strength, "x": value, "length": value, **more}


def x(each):
    return each["x"]


def evidence(dera, retrained):
    return ev.Evidence(PAIR, dera, retrained, {}, [])


def test_all_seeds_count():
    """A mean over seeds is of every seed's rows."""
    rows = {(0.5, seed): [row(p, 0, float(seed)) for p in range(12)] for seed in (0, 1, 2)}
    assert ev.curve(rows, x)[0.5].mean == 1.0
    assert spread.difference(ev.rows_at(rows, 0.5), rows[0.5, 0], x).mean == 1.0


def test_weighting_gives_the_sequence_level_mixture():
    """On two-token responses over two words, samples of Eq. 6 weighted by Π zₜ have Eq. 5's mean."""
    rng, lambda_ = np.random.default_rng(0), 0.7
    first, second = (
        rng.dirichlet([1, 1], size=2),
        rng.dirichlet([1, 1], size=(2, 2)),
    )  # [model], [model, context]

    def mixed(p):
        weights = p[0] ** (1 - lambda_) * p[1] ** lambda_
        return weights / weights.sum(), math.log(weights.sum())

    exact, rows = {}, []
    step, log_z = mixed(first)
    for a in range(2):
        after, log_z2 = mixed(second[:, a])
        for b in range(2):
            exact[a, b] = math.prod(
                (first[m, a] * second[m, a, b]) ** w for m, w in enumerate((1 - lambda_, lambda_))
            )
            count = round(200_000 * step[a] * after[b])
            logprob = math.log(step[a] * after[b])
            rows += [
                {"prompt_id": 0, "sample": len(rows) + n, "x": float(a == b), "finish_reason": "eos",
                 "logprob": logprob, "sampling_logprob": logprob, "log_normalizer": log_z + log_z2}
                for n in range(count)
            ]  # fmt: skip
    target = sum(p for (a, b), p in exact.items() if a == b) / sum(exact.values())
    assert ev.weighted(rows, x).mean == pytest.approx(target, abs=1e-4)
    assert abs(np.mean([each["x"] for each in rows]) - target) > 1e-3  # it does something


def test_labels_follow_bradley_terry_and_empty_completions_make_no_pair(tmp_path):
    """P(a ≻ b) = σ(margin / temperature), here of a margin of 1 at 0.5; none of an empty, an equal or a cut one.

    What was drawn to a line break ends with it, and what ended by itself does not.
    """
    texts = (
        ("good", 1.0, "stop"), ("bad", 0.0, "eos"), ("", 0.0, "stop"), ("word", 1.0, "stop"),
        ("same", 0.0, "stop"), ("same", 0.0, "stop"), ("cut", 1.0, "length"), ("whole", 0.0, "stop"),
    )  # fmt: skip
    rows = [
        {
            "prompt_id": n,
            "sample": i,
            "lambda": 0,
            "prompt": "p",
            "completion": text,
            "rewards": {"lexicon": value},
            "reference_logprob": 0.0,
            "length": 1,
            "finish_reason": reason,
        }
        for n in range(2000)
        for i, (text, value, reason) in enumerate(texts)
    ]
    recipe_data.write_rows(tmp_path / "rows.jsonl", rows)
    recipe_data.gold_pairs(tmp_path, str(tmp_path), temperature="0.5", held_out="0.2", stop=r"\n")
    parts = {
        name: [record.fields for record in load_records(str(tmp_path / f"{name}.jsonl"))]
        for name in ("train", "held_out")
    }
    assert {name: len(pairs) for name, pairs in parts.items()} == {"train": 1600, "held_out": 400}
    pairs = [pair for part in parts.values() for pair in part]
    assert {pair["chosen"] for pair in pairs} == {"good\n", "bad"}
    assert all((pair["chosen"] == "good\n") == (pair["margin_true"] == 1) for pair in pairs)
    expected = 1 / (1 + math.exp(-1 / 0.5))
    found = np.mean([pair["chosen"] == "good\n" for pair in pairs])
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / len(pairs))


def test_what_a_text_invents():
    meaning = "name[Aromi], eatType[coffee shop], food[Indian], near[Raja Indian Cuisine], priceRange[£20-25]"
    assert (
        inventions(meaning, "Aromi is a moderately priced Indian coffee shop near Raja Indian Cuisine.") == []
    )
    assert inventions(meaning, "Aromi in the city centre, near The Mill.") == [
        ("place", "The Mill"), ("area", "city centre"),
    ]  # fmt: skip
    assert invented([meaning] * 2, ["Aromi.", "The Eagle."]) == [0.0, -1.0]


@pytest.mark.data("e2e")
def test_people_invent_little(data):
    """What people wrote for E2E's development set is faithful but for slips of theirs and of the patterns."""
    with open(data / "e2e/devset.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::40]
    found = invented([r["mr"] for r in rows], [r["ref"] for r in rows])
    assert -0.12 < np.mean(found) < 0


def test_certificates_are_the_distances_of_a_known_optimum():
    """A reward of −1 or 0: J* and KL(π‖π*) are closed forms of the shares in the band."""
    rng = np.random.default_rng(0)
    beta, prompts, samples = 0.5, 20, 200

    def rows(inside, kl):
        """Rows of which a share lies in the band, all at a KL."""
        return [
            {"prompt_id": prompt, "sample": sample, "lambda": 1.0, "kl_to_reference": kl, "length": 5,
             "rewards": {"length": float(hit) - 1}}
            for prompt in range(prompts) for sample, hit in enumerate(rng.random(samples) < inside)
        ]  # fmt: skip

    reference = [row | {"lambda": 0.0} for row in rows(0.3, 0.0)]
    evidence = ev.Evidence(
        replace(PAIR, beta=beta),
        {(0.0, 0): reference},
        {(1.0, 0): rows(0.6, 0.4), (2.0, 0): rows(0.6, 3.0)},
        {},
        [],
    )
    reward = qu.reward("length")
    found = certificates(subjects.Subject(evidence, reward, {}, reward, ""))
    assert [each.strength for each in found] == [1.0, 2.0]
    for each, kl in zip(found, (0.4, 3.0), strict=True):
        s = beta / each.strength
        # J* = s log(p + (1 − p) e^{−1/s}), the reference's share in the band as it was drawn.
        p = 1 + np.mean([row["rewards"]["length"] for row in reference])
        best = s * np.log(p + (1 - p) * np.exp(-1 / s))
        own = 0.6 - 1 - s * kl
        assert each.distance.mean == pytest.approx((best - own) / s, abs=0.1)
        assert each.share.mean == pytest.approx((own - (p - 1)) / (best - (p - 1)), abs=0.1)
    assert found[0].share.mean > 0 > found[1].share.mean


def test_what_designs_were_chosen_on_is_not_what_confirms_them(tmp_path):
    stories = "\n".join(f"w{n} " * 9 for n in range(40))
    (tmp_path / "stories.txt").write_text(stories.replace("\n", "\n<|endoftext|>\n"))
    recipe_data.openings(tmp_path, str(tmp_path / "stories.txt"), words="8", held_out="6")
    named = {
        name: [record.fields["id"] for record in load_records(str(tmp_path / f"{name}.jsonl"))]
        for name in ("train", "held_out", "confirmatory")
    }
    assert named["confirmatory"] == named["held_out"][3:] == ["held_out-3", "held_out-4", "held_out-5"]
    assert len(named["train"]) > 6 and not {*named["train"]} & {*named["held_out"]}
