"""The choice of a strength as a user meets it: what is told, what is refused, a model retrained at β*."""

import json
import random
import struct

import numpy as np
import pytest

from dera_jax.commands import rlhf as rlhf_command
from dera_jax.commands import sweep as sweep_command
from dera_jax.commands import tune as tune_command
from dera_jax.policies.policy import TOY
from dera_jax.results.reading import read_rows
from dera_jax.strengths import parse_strengths
from tests.support.grids import PEAK, gridded, rows_of, write_rows


def run_command(capsys, *words):
    code = tune_command.main(list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err


def size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture(scope="module")
def peaked(tmp_path_factory):
    grid = gridded(PEAK, 100, seed=1, noise=0.3, quality=[1, 0.99, 0.985, 0.981, 0.9, 0.7])
    return write_rows(tmp_path_factory.mktemp("run") / "rows.jsonl", rows_of(grid))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    grid = gridded({0: 0, 1: 1}, 24, samples=1, quality=[1, 0.9])
    return write_rows(tmp_path_factory.mktemp("run") / "rows.jsonl", rows_of(grid))


def test_the_command_tells_all_and_the_order_of_rows_does_not_matter(peaked, tmp_path, capsys):
    shuffled = peaked.read_text().splitlines()
    random.Random(0).shuffle(shuffled)
    other = tmp_path / "rows.jsonl"
    other.write_text("\n".join(shuffled))
    figures, told = [], []
    for number, run in enumerate((peaked, other)):
        out, plot = tmp_path / f"{number}.json", tmp_path / "0.png"
        code, text, _ = run_command(
            capsys, run, "--objective=gold", "--constraint=quality>=-2%", "--constraint=kl<=5", f"--out={out}",
            *([] if number else [f"--plot={plot}"]),
        )  # fmt: skip
        assert code == 0
        figures.append(json.loads(out.read_text()) | {"run": None, "provenance": None})
        told.append([line for line in text.splitlines() if "tmp" not in line])
    assert figures[0] == figures[1] and told[0][:-1] == told[1][:-1]
    assert size(tmp_path / "0.png")[0] > 2000
    found = figures[0]
    assert found["lambda"] == 1.2 and found["beta_star"] == [0.0833333]
    assert found["value"]["mean"] == pytest.approx(
        PEAK[1.2], abs=2 * (found["value"]["high"] - found["value"]["low"])
    )
    assert list(found["differences"]) == ["0"] and found["margins"]["kl<=5"]["mean"] == pytest.approx(3.8)
    assert [s["allowed"] for s in found["strengths"]] == [True] * 4 + [False] * 2
    text = "\n".join(told[0])
    for line in (
        "1.2 *", "λ* = 1.2: objective", "rl_beta: 0.08333", "not compared with λ = 1: not in the run",
        "quality>=-2%: holds by 0.001", "β* = β/λ* = 0.1/1.2 = 0.08333",
    ):  # fmt: skip
        assert line in text


def test_a_strength_at_the_edge_asks_for_more(tmp_path, capsys):
    run = write_rows(
        tmp_path / "rows.jsonl", rows_of(gridded({0: 0, 0.5: 1, 1: 2}, 30, noise=0.1), beta=None)
    )
    code, text, _ = run_command(capsys, run)
    assert code == 0 and "add --lambda=1.5:2:0.5 to the sweep" in text and "no β*: β is unknown" in text
    assert "β* = β/λ* = 0.3/1 = 0.3" in run_command(capsys, run, "--beta=0.3")[1]


@pytest.mark.parametrize(
    ("means", "noise", "verdict"),
    [
        ({0: 0, 1: 0, 2: 9}, 0.1, "surely better than λ = 1"),
        ({0: 0, 1: 1, 2: 1.01}, 3.0, "not surely better than λ = 1"),
        ({0: 0, 1: 9, 2: 0}, 0.1, "the aligned model as it is; keep β"),
    ],
)
def test_whether_the_choice_is_surely_better_is_told(means, noise, verdict, tmp_path, capsys):
    for seed in range(20):
        run = write_rows(tmp_path / "rows.jsonl", rows_of(gridded(means, 30, noise=noise, seed=seed)))
        code, text, _ = run_command(capsys, run)
        if "not" not in verdict or "λ* = 2" in text:
            break
    assert code == 0 and f"verdict: {verdict}" in text


def test_the_reference_as_the_best_is_said_to_be_the_reference(peaked, capsys):
    code, text, _ = run_command(capsys, peaked, "--objective=gold", "--kl-price=10")
    assert code == 0 and "λ* is the reference: by this objective the alignment does not pay" in text
    assert "the best may lie beyond" not in text and "(--lambda=-2:-0.4:0.4)" in text


def test_a_win_rate_on_a_second_run(peaked, tmp_path, capsys):
    other = gridded(PEAK, 60, seed=9)
    rows = [row | {"prompt": f"another {row['prompt_id']}"} for row in rows_of(other) if row["lambda"] != 2]
    second = write_rows(tmp_path / "rows.jsonl", rows)
    code, text, errors = run_command(
        capsys, peaked, "--objective=win-rate", "--judge=gold", f"--validation={second}"
    )
    assert code == 0 and "validated on 60 prompts (120 completions" in text
    assert "5 of 6 strengths are in both runs" in errors and "win rate by gold against λ = 0" in text
    (reference,) = (line for line in text.splitlines() if line.split()[:2] == ["0", "∞"])
    assert reference.count("0.500 ± 0.000") == 2
    code, _, errors = run_command(capsys, peaked, "--objective=gold", f"--validation={peaked}")
    assert code == 2 and "100 of its prompts are those of" in errors


def test_several_aligned_models_have_a_beta_star_each(tmp_path, capsys):
    strengths = parse_strengths("0:1:0.5x0:1:0.5", 2)
    rng = np.random.default_rng(0)
    rows = [
        {"prompt_id": p, "sample": 0, "lambda": list(s), "beta": 0.1, "length": 1, "kl_to_reference": 0.0,
         "prompt": str(p), "rewards": {"gold": -((s[0] - 0.5) ** 2) - (s[1] - 1) ** 2 + 0.01 * rng.normal()}}
        for p in range(40) for s in strengths
    ]  # fmt: skip
    run = write_rows(tmp_path / "rows.jsonl", rows)
    code, text, _ = run_command(capsys, run, "--beta=0.1", f"--plot={tmp_path / 'a.png'}")
    assert code == 0 and size(tmp_path / "a.png")[0] > 1000
    assert "β*₁ = β₁/λ*₁ = 0.1/0.5 = 0.2\nβ*₂ = β₂/λ*₂ = 0.1/1 = 0.1" in text
    assert "λ* of aligned model 2 is the largest strength tried: the best may lie beyond; add" in text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--objective=nope"], "--objective: no reward 'nope'; the rows have gold, quality"),
        ([], "--objective: expected a reward or win-rate; the rows have gold, quality"),
        (["--objective=win-rate"], "--judge: expected the reward that decides"),
        (["--objective=gold", "--judge=gold"], "--judge has no meaning"),
        (["--objective=gold", "--against=1"], "--against has no meaning"),
        (["--objective=win-rate", "--judge=gold", "--against=7"], "λ = 7 is needed and not among the strengths"),
        (["--objective=gold", "--kl-price=-1"], "--kl-price: expected a number of at least 0"),
        (["--objective=gold", "--constraint=quality"], "--constraint: expected NAME>=NUMBER or NAME<=NUMBER"),
        (["--objective=gold", "--constraint=slots>=1"], "no figure 'slots'; the rows have gold, quality, kl, length"),
        (["--objective=gold", "--constraint=kl<=5%"], "the mean of kl is 0 at λ = 0; write a number"),
        (["--objective=gold", "--constraint=quality>=1.1"], "the nearest, λ = 0, misses quality>=1.1 by 0.1 ("),
        (["--objective=gold", "--validation=1.5"], "--validation: expected a share between 0 and 1"),
        (["--objective=gold", "--validation=0.01"], "expected at least 8 prompts to choose on"),
        (["--objective=gold", "--validation=/no/run"], "cannot read /no/run"),
        (["--objective=gold", "--beta=0.2"], "--beta: the rows have 0.1, found 0.2"),
        (["--objective=gold", "--beta=x"], "--beta: expected a number of at least 0"),
        (["--objective=gold", "--retrain"], "--retrain: no manifest.json beside the rows"),
        (["--objective=gold", "--retrain-out=x"], "--retrain-out has no meaning without --retrain"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_line(small, words, error, capsys):
    code, _, errors = run_command(capsys, small, *words)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert error in errors


def test_one_strength_leaves_no_choice(tmp_path, capsys):
    run = write_rows(tmp_path / "rows.jsonl", rows_of(gridded({1: 0}, 30)))
    code, _, errors = run_command(capsys, run)
    assert code == 2 and "expected at least 2 strengths, found 1" in errors


# Retraining


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model aligned in two steps, and its sweep."""
    work = tmp_path_factory.mktemp("retrain")
    common = ["--reward=length:16:24", "--max-new-tokens=12", "--beta=0.1"]
    training = [f"--model={TOY / 'reference'}", "--data=toy", "--num-prompts=16", "--max-steps=2"]
    training += ["--batch-size=16", "--num-samples=2", "--learning-rate=0.01"]
    assert rlhf_command.main([*training, *common, f"--out={work / 'aligned'}"]) == 0
    sweep = [f"--reference={TOY / 'reference'}", f"--aligned={work / 'aligned'}", "--prompts=toy", *common]
    sweep += ["--lambda=0.5,1,2", "--num-prompts=24", "--rows=8", f"--out={work / 'run'}"]
    assert sweep_command.main(sweep) == 0
    return work, [*training, *common]


@pytest.mark.slow
def test_retraining_at_beta_star_is_compared_and_goes_on(trained, capsys):
    work, training = trained
    out, figures = work / "tuned", work / "tuned.json"
    # So high a price that the least of the strengths is the best.
    words = [
        work / "run", "--kl-price=1000", "--retrain", f"--retrain-out={out}", f"--out={figures}",
        f"--plot={work / 'tuned.png'}",
    ]  # fmt: skip
    code, text, _ = run_command(capsys, *words)
    assert code == 0
    first = json.loads(figures.read_text())
    found = first["retrained"]
    assert first["lambda"] == 0.5 and found["beta"] == 0.2
    assert json.loads((out / "model" / "manifest.json").read_text())["beta"] == 0.2
    # The same model as of the command itself.
    assert rlhf_command.main([*training, "--beta=0.2", f"--out={work / 'direct'}"]) == 0
    name = "model.safetensors"
    assert (out / "model" / name).read_bytes() == (work / "direct" / name).read_bytes()
    assert (out / "model" / name).read_bytes() != (work / "aligned" / name).read_bytes()
    # The comparison, once more from the rows.
    retrained = {(row["prompt_id"], row["sample"]): row for row in read_rows(out / "sweep")}
    there = {(row["prompt_id"], row["sample"], row["lambda"]): row for row in read_rows(work / "run")}
    assert len(retrained) == found["prompts"] == first["parts"]["validation"]["prompts"] >= 8

    def value(row):
        return row["rewards"]["length:16:24"] - 1000 * row["kl_to_reference"]

    for strength, told in ((0.5, found["less_dera"]), (1, found["differences"]["1"])):
        paired = [value(row) - value(there[*key, strength]) for key, row in retrained.items()]
        assert told["mean"] == pytest.approx(np.mean(paired))
    assert found["cost"]["strengths"] == 3 and found["cost"]["saved"] == pytest.approx(1 / 3)
    for line in (
        "retrained at β* = 0.2",
        "less DeRa at λ* = 0.5, paired",
        "not compared: models trained",
        "33% saved",
    ):
        assert line in text
    # Stopped while it was decoding: what is there stays, the rest is made, and nothing is trained again.
    rows = out / "sweep" / "rows.jsonl"
    whole = rows.read_text()
    rows.write_text("".join(whole.splitlines(keepends=True)[:5]) + '{"torn')
    before = (out / "model" / name).stat().st_mtime_ns
    code, _, errors = run_command(capsys, *words)
    assert code == 0 and "already trained" in errors and before == (out / "model" / name).stat().st_mtime_ns
    again = json.loads(figures.read_text())
    assert again["retrained"] == found and sorted(rows.read_text().splitlines()) == sorted(whole.splitlines())


def test_retraining_tells_what_it_lacks(trained, tmp_path, capsys):
    work, _ = trained
    words = [work / "run", "--kl-price=1000", "--retrain", f"--retrain-out={tmp_path / 'x'}"]
    code, text, errors = run_command(capsys, *words, f"--aligned={TOY / 'reference'}")
    assert code == 2 and "λ* = 0.5" in text and "which has no reference and so no β" in errors
    other = tmp_path / "prompts.jsonl"
    other.write_text("".join(f'{{"id": "toy-{n:03}", "prompt": "Other"}}\n' for n in range(24)))
    code, _, errors = run_command(capsys, *words, f"--prompts={other}")
    assert code == 2 and "is another in the run" in errors
    other.write_text('{"id": "toy-000", "prompt": "Other"}\n')
    code, _, errors = run_command(capsys, *words, f"--prompts={other}")
    assert code == 2 and ("is not in" in errors or "is another" in errors)


def test_the_aligned_model_itself_is_not_trained_again(trained, tmp_path, capsys):
    work, _ = trained
    kl = {
        s: np.mean([row["kl_to_reference"] for row in read_rows(work / "run") if row["lambda"] == s])
        for s in (0.5, 1)
    }
    words = ["--kl-price=1000", f"--constraint=kl>={sum(kl.values()) / 2:.8f}", "--retrain"]
    code, text, _ = run_command(capsys, work / "run", *words, f"--retrain-out={tmp_path / 'x'}")
    assert code == 0 and "λ* = 1 is the aligned model itself" in text and not (tmp_path / "x").exists()
