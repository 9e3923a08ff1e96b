"""What is made of completions that are there: figures, tables, rewards, accuracies, divergences."""

import json
import shutil

import pytest

from dera_jax import load_policies, load_prompts, read_rows
from dera_jax.commands import plot
from dera_jax.commands import score as score_command
from dera_jax.scoring.divergence import encode_texts, kl_per_token
from tests.support.command_runs import PNG, TEXTS

# Figures and tables


def test_plot_draws_a_figure_and_prints_tables(call, run):
    (run / "sweep.png").unlink()
    code, out, _ = call(plot.main, run)
    assert (code, out.strip()) == (0, str(run / "sweep.png"))
    assert (run / "sweep.png").read_bytes().startswith(PNG)
    code, out, _ = call(plot.main, run, "--table=markdown")
    assert code == 0 and out.startswith("| λ | β/λ | `length:24:30` |")
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["0", "0.5", "1"]
    code, out, _ = call(plot.main, run, "--table=latex")
    assert code == 0 and out.startswith(r"\begin{tabular}") and r"$\beta/\lambda$" in out


def test_plot_takes_several_runs_and_files_of_rows(call, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other" / "run")
    code, _, _ = call(plot.main, run, other / "rows.jsonl", f"--out={tmp_path / 'both.png'}")
    assert code == 0 and (tmp_path / "both.png").read_bytes().startswith(PNG)
    code, out, _ = call(plot.main, run, other / "rows.jsonl", "--table=terminal")
    # Runs of one name are told apart.
    assert code == 0 and str(run) in out and str(other / "rows.jsonl") in out


def test_plot_refuses_a_run_that_is_not_complete(call, refused, run):
    rows = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(rows[:-1]))
    assert "1 completion is missing, the first at λ = " in refused(plot.main, run)
    code, out, err = call(plot.main, run, "--table=markdown", "--allow-missing")
    assert code == 0 and out.startswith("| λ |") and err.startswith("warning: ")


def test_plot_says_what_is_wrong_with_a_run(refused, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert "no rows yet" in refused(plot.main, tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt_id": 0}\n{}\n')
    assert "rows.jsonl:1: broken row: no 'sample' in it" in refused(plot.main, tmp_path)


# Scores


def test_score_adds_a_reward_to_stored_rows(call, run, finished, mine, monkeypatch):
    monkeypatch.setattr("dera_jax.decoding.batch.Batch.step", None)
    code, out, _ = call(score_command.main, run, f"--reward=python:{mine}:words")
    assert code == 0 and "rewards added to rows.jsonl" in out and "length:24:30" in out
    for row, before in zip(read_rows(run), read_rows(finished), strict=True):
        assert row["rewards"].pop(f"python:{mine}:words") == len(row["completion"].split())
        assert row == before
    assert f"reward_python:{mine}:words" in (run / "summary.csv").read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["commands"][-1]["command"][:4] == ["python", "-m", "eval.score", str(run)]
    code, out, _ = call(score_command.main, run, f"--reward=python:{mine}:words")
    assert code == 0 and "nothing to add" in out


def test_score_of_pairs_prints_and_writes_accuracies(call, models, tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": TEXTS[0], "chosen": ", there was a little girl.", "rejected": " dog the of ran red."}
    path.write_text(
        json.dumps(good) + "\n" + json.dumps(good | {"chosen": "of of", "rejected": ", there was"})
    )
    words = [f"--pairs={path}", "--lambda=0,1", f"--out={tmp_path / 'pairs.json'}"]
    code, out, _ = call(score_command.main, *models, *words)
    assert code == 0 and "2 pairs" in out and "accuracy (Eq. 14)" in out
    table = json.loads((tmp_path / "pairs.json").read_text())
    assert [line["lambda"] for line in table] == [0.0, 1.0]
    assert table[0]["accuracy"]["mean"] == 0.5 and table[0]["implicit_reward_accuracy"] is None


def test_score_of_models_is_the_mean_divergence(call, toy, aligned, prompts, tmp_path):
    out = tmp_path / "kl.json"
    code, text, _ = call(score_command.main, f"--models={aligned},{toy}", prompts, f"--out={out}")
    assert code == 0 and text.startswith(f"KL({aligned} ‖ {toy}) = ")
    found = json.loads(out.read_text())
    # KL of A against B: B is the reference. Held against torch in test_stored.
    policies = load_policies(toy, aligned)
    expected = kl_per_token(
        policies, encode_texts(policies, load_prompts(prompts.partition("=")[2]))[0], rows=3
    )
    # Other rows share its batches, and the longest of a batch decides how its queries are split.
    told = {"mean": expected.mean, "low": expected.low, "high": expected.high}
    assert found["kl_per_token"] == pytest.approx(told, rel=1e-4)
    assert found["models"] == [str(aligned), str(toy)] and found["prompts"] == 3
    assert f"{expected.mean:.4g} ± {expected.half_width:.2g} nats per token" in text
    code, same, _ = call(score_command.main, f"--models={toy},{toy}", prompts, "--num-prompts=1")
    assert code == 0 and "= 0 nats per token, on 1 texts" in same
