"""The command train.value, as a user runs it, and what uses its head."""

import numpy as np
import pytest

from dera_jax.commands import combine, generate, sweep
from dera_jax.commands import rlhf as rlhf_command
from dera_jax.commands import value as value_command
from dera_jax.results.reading import read_rows
from dera_jax.training.log import read_metrics
from tests.support.json_files import manifest


@pytest.fixture(scope="module")
def trained(toy, openings, tmp_path_factory):
    out = tmp_path_factory.mktemp("values") / "value"
    words = arguments(toy, openings, out)
    assert value_command.main(words) == 0
    return out, words


def arguments(toy, openings, out, *more):
    return [
        f"--model={toy}", f"--data={openings}", f"--eval-data={openings}", "--reward=length:4:8", f"--out={out}",
        "--max-steps=3", "--batch-size=16", "--num-samples=2", "--max-new-tokens=8", *more,
    ]  # fmt: skip


def test_a_head_is_written_alone_and_the_command_is_done_once(trained, toy, call):
    out, words = trained
    there = {path.name for path in out.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert {"value_head.safetensors", "value_config.json", "manifest.json", "metrics.jsonl"} <= there
    assert "model.safetensors" not in there and "config.json" not in there
    told = manifest(out)
    assert told["method"] == "value" and told["values"] == {"method": "fudge", "num_epochs": 4}
    assert told["start"]["model"] == str(toy) and told["finished"] and "eval_error" in told["best"]
    last = read_metrics(out)[-1]
    assert {"eval_explained_variance", "eval_error", "reward", "error"} <= last.keys()
    code, said, _ = call(value_command.main, *words)
    assert code == 0 and "already trained (3 steps)" in said
    code, _, err = call(value_command.main, *words, "--method=cd-q")
    assert code == 2 and "values.method" in err and err.count("\n") == 1 + err.count("devices:") + 2


def test_sweeps_tilt_by_it_and_rank_by_it(trained, toy, prompts, tmp_path, call):
    out, _ = trained
    base = [f"--reference={toy}", prompts, "--max-new-tokens=8", "--rows=4", "--reward=length:4:8"]
    run = tmp_path / "tilt"
    code, _, _ = call(sweep.main, *base, f"--aligned={out}", "--rule=tilt", "--lambda=0,2", f"--out={run}")
    rows = read_rows(run)
    assert code == 0 and len(rows) == 6 and {row["rule"] for row in rows} == {"tilt"}
    assert all(row["kl_to_reference"] == 0 for row in rows if row["lambda"] == 0)
    assert all(np.isfinite(row["logprob"]) for row in rows)
    draw = f"--draw=best-of:3:value:{out}"
    code, _, err = call(
        sweep.main, *base, f"--aligned={toy}", "--lambda=0", draw, f"--out={tmp_path / 'best'}"
    )
    assert code == 0, err
    identity = manifest(tmp_path / "best")
    assert "draw_fingerprint" in str(identity)


def test_what_takes_no_head_says_so_in_a_line(trained, toy, openings, models, tmp_path, refused):
    out, _ = trained
    asked = ["--max-new-tokens=4", "--lambda=0.5"]
    assert "is a value head; the rule tilt takes one" in refused(
        generate.main, f"--reference={toy}", f"--aligned={out}", *asked
    )
    assert "expected a value head (of train.value) as the last model" in refused(
        generate.main, *models, "--rule=tilt", *asked
    )
    assert "expected a language model, found a value head" in refused(
        combine.main, f"--reference={toy}", f"--aligned={out}", "--lambda=0.5", f"--out={tmp_path / 'c'}"
    )
    assert "expected a language model, found a value head" in refused(
        rlhf_command.main, f"--model={out}", f"--data={openings}", "--reward=length:4:8", f"--out={tmp_path / 'r'}",
        "--batch-size=4",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--num-samples=3", "expected a multiple of --num-samples=3"),
        ("--num-epochs=0", "--num-epochs: expected a whole number, at least 1"),
        ("--method=other", "--method"),
        ("--lora-r=4", "--lora-r"),
        ("--reward=polite", "unknown reward 'polite'"),
        ("--batch-size=64", "takes 32 prompts a step, found"),
    ],
)
def test_mistakes_are_one_line(toy, openings, tmp_path, refused, option, said):
    assert said in refused(value_command.main, *arguments(toy, openings, tmp_path / "out"), option)
