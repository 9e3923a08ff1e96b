"""Curves and optima as a user meets them: what is written, what takes them, what is refused."""

import csv
import json

import numpy as np
import pytest

from dera_jax.commands import curve, optimum, plot, sweep, tune
from dera_jax.commands.options import models
from dera_jax.results.reading import read_rows
from dera_jax.scoring.normalizers import read_again

SMALL = ["--num-prompts=16", "--max-new-tokens=24"]


def call(capsys, command, *words):
    code = command.main(list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("curve") / "run"
    assert curve.main([*SMALL, "--num-samples=2", f"--out={out}", "--limit-means=absorb"]) == 0
    return out


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("optimum") / "toy"
    assert optimum.main([*SMALL, "--tries=16", f"--out={out}", "--lambda=0,1,2"]) == 0
    return out


def test_a_curve_has_strengths_between_those_decoded(run, capsys):
    assert call(capsys, curve, run, "--limit-means=absorb")[0] == 0
    rows = read_rows(run)
    assert {row["lambda"] for row in rows} == {0.0, 0.5, 1.0} and len(rows) == 96
    found = json.loads((run / "curve.json").read_text())
    assert found["law"] == "response" and len(found["points"]) == 76
    table = list(csv.DictReader((run / "curve.csv").read_text().splitlines()))
    assert [float(line["lambda"]) for line in table] == [point["lambda"] for point in found["points"]]
    by_strength = {point["lambda"]: point["figures"] for point in found["points"]}
    # Of few completions, but the right way: the aligned model has more reward, and is further away.
    name = "length:16:24"
    assert by_strength[0.0][name]["mean"] < by_strength[0.5][name]["mean"] < by_strength[1.0][name]["mean"]
    assert by_strength[0.0]["kl"]["mean"] < by_strength[0.5]["kl"]["mean"] < by_strength[1.0]["kl"]["mean"]
    assert (run / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_reading_again_gives_what_decoding_gave(run):
    from dera_jax import load_policies

    rows = [row for row in read_rows(run) if row["lambda"] == 0.5][:12]
    found = {number: each for number, *each in read_again(load_policies(), rows, [0.5, 1.0], 8)}
    for number, row in enumerate(rows):
        log_normalizers, kl = found[number]
        assert log_normalizers[0] == pytest.approx(row["log_normalizer"], abs=2e-4)
        assert kl[0] == pytest.approx(row["kl_to_reference"], abs=2e-4)
        assert log_normalizers[1] == pytest.approx(0, abs=2e-4)


def test_a_curve_drawn_again_needs_no_model(run, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_models", None)
    code, told, _ = call(capsys, curve, run, "--grid=0:1:0.25", "--limit-means=absorb")
    assert code == 0 and "∫₀¹" in told and "log Z at λ = 0.5: from below" in told


def test_a_strength_is_tuned_on_a_curve(run, capsys, tmp_path):
    call(capsys, curve, run)
    out = tmp_path / "tuned.json"
    code, told, _ = call(capsys, tune, run / "curve.json", "--kl-price=0.05", f"--out={out}")
    assert code == 0 and "95 % interval of λ*" in told
    low, high = json.loads(out.read_text())["interval"]
    assert low <= json.loads(out.read_text())["lambda"] <= high
    code, _, error = call(capsys, tune, run / "curve.json", "--retrain")
    assert code == 2 and "--retrain: expected a sweep's completions" in error
    code, _, error = call(capsys, tune, run / "manifest.json")
    assert code == 2 and "expected a curve" in error


def test_the_realigned_policys_own_curve_is_what_is_decoded(run, capsys):
    code, told, _ = call(capsys, curve, run, "--per-token", "--grid=0,0.5,1")
    assert code == 0 and "Eq. 6" in told
    points = {point["lambda"]: point for point in json.loads((run / "curve.json").read_text())["points"]}
    for strength in (0.0, 0.5, 1.0):
        plain = [row for row in read_rows(run) if row["lambda"] == strength]
        for name, values in (
            ("kl", [r["kl_to_reference"] for r in plain]),
            ("length", [r["length"] for r in plain]),
        ):
            found = points[strength]["figures"][name]
            spread = 4 * np.std(values) / np.sqrt(len(values))
            assert abs(found["mean"] - np.mean(values)) <= spread + 1e-6, (strength, name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--num-prompts=3"], "--num-prompts has no meaning with RUN"),
        (["--grid=a"], "--grid: "),
        (["--grid=0,1e300"], "--grid: expected strengths from -100 to 100"),
        (["--draft=ngram"], "--draft has no meaning with RUN"),
    ],
)
def test_wrong_options_are_one_line(run, capsys, words, told):
    code, _, error = call(capsys, curve, run, *words)
    assert code == 2 and told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed=1", "--num-prompts=2"], "expected the prompts of"),
        (["--seed=1", "--max-new-tokens=8", "--num-prompts=16"], "max_new_tokens is not that of"),
        (["--num-prompts=16"], "has completions of"),
        (
            ["--seed=1", "--temperature=0.5", "--num-prompts=16"],
            "found temperature 0.5, whose law is another",
        ),
        (["--seed=1", "--draw=exact", "--num-prompts=16", "--max-tries=2"], "found exact"),
    ],
)
def test_runs_that_do_not_pool_are_refused(run, capsys, tmp_path, words, told):
    other = tmp_path / "other"
    shared = [word for word in SMALL if word.partition("=")[0] not in {w.partition("=")[0] for w in words}]
    assert sweep.main(["--lambda=0.5", *shared, *words, f"--out={other}"]) == 0
    capsys.readouterr()
    code, _, error = call(capsys, curve, run, other)
    assert code == 2 and told in error and error.count("\n") == 1


def test_a_run_does_not_pool_with_itself(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    for other in (run, run.name, f"./{run.name}/rows.jsonl"):
        code, _, error = call(capsys, curve, run, other)
        assert code == 2 and "has completions of" in error and error.count("\n") == 1


def shortened(run, out, rows):
    """A copy of a run that was stopped: short completions end first."""
    out.mkdir()
    (out / "manifest.json").write_bytes((run / "manifest.json").read_bytes())
    lines = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[:rows]))
    return out


def test_a_run_that_was_stopped_is_refused(run, reference, capsys, tmp_path):
    part = shortened(run, tmp_path / "part", 60)
    code, _, error = call(capsys, curve, part)
    assert code == 2 and "--allow-missing uses what is there" in error and error.count("\n") == 1
    code, _, error = call(capsys, curve, part, "--allow-missing", f"--out={tmp_path / 'curve'}")
    assert code == 0 and "warning: " in error
    drawn = shortened(reference.with_name("toy-reference"), tmp_path / "drawn", 100)
    words = ["--reward=length:16:24", f"--out={tmp_path / 'optimum'}"]
    code, _, error = call(capsys, optimum, drawn, *words)
    assert code == 2 and "--allow-missing uses what is there" in error and error.count("\n") == 1
    whole = reference.with_name("toy-reference")
    code, _, error = call(capsys, optimum, whole, *words, f"--of={part}")
    assert code == 2 and "--allow-missing" in error and not (tmp_path / "optimum").exists()


@pytest.mark.parametrize(
    "content",
    ["[]", '{"rows": [1]}', '{"models": [], "strengths": [], "rows": [], "log_normalizers": []}', "{"],
)
def test_broken_normalizers_are_one_line(run, capsys, tmp_path, content):
    part = shortened(run, tmp_path / "copy", None)
    (part / "normalizers.json").write_text(content)
    code, _, error = call(capsys, curve, part)
    assert code == 2 and "normalizers.json: broken, remove it" in error and error.count("\n") == 1


def test_normalizers_of_other_prompts_are_not_used(run, capsys, tmp_path, monkeypatch):
    """Two runs may have the same prompt ids, samples and models; what is kept of one says nothing of the other."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Ida sees {n} dogs."}) + "\n" for n in range(16)))
    other, out = tmp_path / "other", tmp_path / "out"
    assert sweep.main(["--lambda=0,0.5,1", *SMALL, f"--prompts={prompts}", f"--out={other}"]) == 0
    assert call(capsys, curve, run, f"--out={out}", "--limit-means=absorb")[0] == 0
    assert "reading again" in call(capsys, curve, other, f"--out={out}", "--limit-means=absorb")[2]
    assert "reading again" not in call(capsys, curve, other, f"--out={out}", "--limit-means=absorb")[2]


def test_distances_need_the_same_limit(reference, run, capsys, tmp_path):
    other = tmp_path / "short"
    assert sweep.main(["--lambda=1", "--num-prompts=16", "--max-new-tokens=8", f"--out={other}"]) == 0
    capsys.readouterr()
    drawn = reference.with_name("toy-reference")
    words = ["--reward=length:16:24", f"--out={tmp_path / 'no'}", f"--of={other}"]
    code, _, error = call(capsys, optimum, drawn, *words)
    assert code == 2 and "its max_new_tokens is 8" in error and error.count("\n") == 1


def test_two_runs_of_other_seeds_are_one_pool(run, capsys, tmp_path):
    other = tmp_path / "other"
    assert sweep.main(["--lambda=0.5,1.5", *SMALL, "--seed=4", f"--out={other}"]) == 0
    code, told, _ = call(capsys, curve, run, other, "--grid=0:2:0.5")
    assert code == 0 and "from 128 completions of 16 prompts at λ = 0, 0.5, 1, 1.5" in told


def test_an_optimum_is_a_run(reference, capsys):
    rows = read_rows(reference)
    assert len(rows) == 3 * 16 * 4 and {row["draw"] for row in rows} == {"optimum:length:16:24"}
    for row in rows:
        if row["exact"]["accepted"] and row["lambda"] == 2:
            assert row["rewards"]["length:16:24"] == 0  # others are accepted once in e^20 times
    found = json.loads((reference / "optimum.json").read_text())["points"]
    assert found[0]["reward"]["mean"] < found[1]["reward"]["mean"] <= found[2]["reward"]["mean"] <= 0
    assert found[0]["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    assert call(capsys, plot, reference)[0] == 0
    assert call(capsys, tune, reference, "--kl-price=0.1")[0] == 0


def test_distances_of_other_runs(reference, run, capsys, tmp_path):
    drawn = reference.with_name("toy-reference")
    out = tmp_path / "again"
    words = ["--reward=length:16:24", f"--out={out}", "--lambda=1"]
    code, told, _ = call(capsys, optimum, drawn, *words, f"--of={run}")
    assert code == 0 and "KL to optimum" in told
    found = json.loads((out / "optimum.json").read_text())["distances"]
    assert [each["lambda"] for each in found] == [0.5, 1.0]
    for each in found:
        # (J* − J)/s, and J as it is told.
        wanted = (each["best"]["mean"] - each["reward"]["mean"] + each["beta"] * each["kl"]["mean"]) / each[
            "beta"
        ]
        assert each["distance"]["mean"] == pytest.approx(wanted) and each["distance"]["mean"] > 0
    # More strengths are added; another β is another run.
    assert call(capsys, optimum, drawn, *words[:-1], "--lambda=2")[0] == 0
    assert {row["lambda"] for row in read_rows(out)} == {1.0, 2.0}
    assert {p["lambda"] for p in json.loads((out / "optimum.json").read_text())["points"]} == {1.0, 2.0}
    for other in ((drawn, "--beta=0.3"), (run,)):
        code, _, error = call(capsys, optimum, *other, *words)
        assert code == 2 and "another" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--reward=slots"], "no reward slots"),
        (["--max-reward=-1"], "--max-reward: expected at least 0"),
        (["--lambda=-1"], "--lambda: expected strengths of at least 0"),
        (["--beta=0"], "--beta"),
        (["--tries=0"], "--tries"),
        (["--num-prompts=2"], "--num-prompts has no meaning with RUN"),
        (["--of=nowhere"], "nowhere"),
    ],
)
def test_wrong_options_of_an_optimum_are_one_line(reference, capsys, words, told):
    drawn = reference.with_name("toy-reference")
    code, _, error = call(capsys, optimum, drawn, f"--out={reference.with_name('wrong')}", *words)
    assert code == 2 and told in error and error.count("\n") == 1
