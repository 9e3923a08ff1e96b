"""The training commands, as a user runs them: real models and data, stops, grids, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import dpo as dpo_command
from dera_jax.commands import reward as reward_command
from dera_jax.commands import rlhf as rlhf_command
from dera_jax.commands import sft as sft_command
from dera_jax.reward_models import load_reward_model, reward_texts
from dera_jax.run_log import read_metrics
from tests.conftest import SHARED

ROOT = Path(__file__).parents[1]
OPENINGS = [
    "Once upon a time", "One day", "Lily and Ben", "Tom was", "The dog", "A bird", "Mia had", "It was"
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    lines = (SHARED / "data/tinystories/tiny_stories_head.txt").read_text().split("\n")
    path = tmp_path_factory.mktemp("data") / "stories.txt"
    path.write_text("\n".join(line for line in lines if 80 < len(line) < 200)[:20_000])
    return path


@pytest.fixture(scope="module")
def openings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in OPENINGS))
    return path


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """Short answers are preferred; the prompts are those of stories."""
    rows = [
        {
            "prompt": f"{opening} {word}",
            "chosen": f" in the {place}.",
            "rejected": f" and then he {word} to play.",
        }
        for opening in OPENINGS
        for word in ("ran", "went", "had", "saw")
        for place in ("park", "house", "sun")
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def test_sft_learns_real_text_from_scratch(stories, texts, tmp_path, capsys):
    out = tmp_path / "sft"
    arguments = [f"--model={stories}", "--from-scratch", f"--data={texts}", f"--out={out}", "--max-length=64"]
    arguments += ["--batch-size=16", "--learning-rate=0.005", "--eval-share=0.1"]
    assert sft_command.main([*arguments, "--max-steps=40", "--report-to=tensorboard"]) == 0
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[0]["loss"] == pytest.approx(np.log(512), abs=0.5) and lines[-1]["loss"] < 4.5
    assert lines[-1]["eval_loss"] < 5
    assert manifest(out)["method"] == "sft" and manifest(out)["finished"]
    assert any((out / "tensorboard").iterdir()) and not (out / "checkpoints").exists()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == 260_032
    weights = (out / "model.safetensors").read_bytes()
    assert (out / "best" / "model.safetensors").read_bytes() == weights  # the last was the best
    # The same command has nothing left to do; another one is told what differs.
    assert sft_command.main([*arguments, "--max-steps=40"]) == 0
    assert "trained already" in capsys.readouterr().out
    assert sft_command.main([*arguments, "--max-steps=1", "--weight-decay=0.1"]) == 2
    error = capsys.readouterr().err
    assert "train_config.max_steps: 40 there, 1 now; train_config.weight_decay: 0.0 there, 0.1 now" in error
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_folder_that_holds_another_model_is_not_touched(stories, texts, capsys, tmp_path):
    import shutil

    copy = shutil.copytree(stories, tmp_path / "copy")
    assert sft_command.main([f"--model={stories}", f"--data={texts}", f"--out={copy}", "--max-steps=1"]) == 2
    assert "already holds a model" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["rloo", "pg", "ppo"])
def test_rlhf_raises_the_reward_and_keeps_beta(algorithm, stories, openings, tmp_path):
    out = tmp_path / "aligned"
    rate = 0.001 if algorithm == "ppo" else 0.002
    code = rlhf_command.main(
        [f"--model={stories}", f"--data={openings}", "--reward=keywords:happy", "--beta=0.02", f"--out={out}",
         "--max-steps=12", "--batch-size=64", "--num-samples=8", "--max-new-tokens=24",
         f"--learning-rate={rate}", f"--algorithm={algorithm}", "--vf-coef=1"]
    )  # fmt: skip
    assert code == 0
    lines = read_metrics(out)
    first, last = (np.mean([line["reward"] for line in part]) for part in (lines[:4], lines[-4:]))
    print(f"{algorithm}: reward {first:.3f} -> {last:.3f}")
    assert last > first + 0.05
    assert abs(lines[0]["kl"]) < 1e-3
    assert load_policy(str(out)).beta == 0.02 and manifest(out)["method"] == algorithm
    assert 0 < lines[0]["entropy"] < np.log(512)


def test_dpo_trains_a_grid_of_adapters(stories, preferences, tmp_path):
    out = tmp_path / "grid"
    code = dpo_command.main(
        [f"--model={stories}", f"--data={preferences}", f"--out={out}", "--beta=0.1,0.5", "--lora-r=4",
         "--learning-rate=0.003", "--max-steps=15", "--batch-size=16", "--eval-share=0.2"]
    )  # fmt: skip
    assert code == 0
    for beta in (0.1, 0.5):
        run = out / f"beta={beta}"
        lines = read_metrics(run)
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
        assert lines[-1]["eval_accuracy"] > 0.9
        aligned = load_policy(f"{stories}+{run}")
        assert aligned.beta == beta and aligned.config.adapters[0].rank == 4
    # Less regularization, further away.
    margins = [read_metrics(out / f"beta={beta}")[-1]["margin"] / beta for beta in (0.1, 0.5)]
    assert margins[0] > margins[1]
    assert len(list((out / "cache").iterdir())) == 2


def test_a_reward_model_is_trained_and_serves_as_a_reward(stories, preferences, openings, tmp_path):
    out = tmp_path / "judge"
    arguments = [f"--model={stories}", f"--data={preferences}", f"--out={out}", "--eval-share=0.2"]
    assert (
        reward_command.main([*arguments, "--max-steps=15", "--batch-size=16", "--learning-rate=0.001"]) == 0
    )
    assert read_metrics(out)[-1]["eval_accuracy"] > 0.9
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(out)
    ours = load_reward_model(str(out))
    texts = [[1, 403, 407, 261], [1, 403, 378, 267, 1]]
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits.item() for ids in texts]
    np.testing.assert_allclose(reward_texts(ours, texts), expected, atol=2e-5)
    arguments = [f"--model={stories}", f"--data={openings}", f"--reward=model:{out}", "--max-steps=2"]
    assert (
        rlhf_command.main([*arguments, f"--out={tmp_path / 'p'}", "--batch-size=16", "--max-new-tokens=8"])
        == 0
    )


def run(command, *arguments, **more):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | more.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", command, *map(str, arguments)], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def finish(process):
    """Waits for a process that is to end well."""
    said = process.communicate()
    assert process.returncode == 0, said


def wait_for_lines(path, count, process):
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.02)


def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_happened(stories, texts, tmp_path):
    """SIGTERM once, SIGKILL ten times: bit-identical parameters, the same lines."""
    arguments = [
        f"--model={stories}", f"--data={texts}", "--max-length=64", "--max-steps=24", "--batch-size=8",
        "--learning-rate=0.002", "--save-steps=1", "--eval-steps=6", "--eval-share=0.1",
    ]  # fmt: skip
    # Compiled once for all runs.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    finish(run("train.sft", *arguments, f"--out={straight}", env=cache))
    random = np.random.default_rng(0)
    for attempt in range(11):
        process = run("train.sft", *arguments, f"--out={stopped}", env=cache)
        wait_for_lines(stopped / "metrics.jsonl", 2 * (attempt + 1), process)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL if attempt else signal.SIGTERM)
        said = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0) if attempt else process.returncode == 0, said
    finish(run("train.sft", *arguments, f"--out={stopped}", env=cache))
    for name in ("metrics.jsonl", "samples.jsonl", "model.safetensors", "best/model.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes(), name
    assert [line["step"] for line in read_metrics(stopped)] == list(range(24))


def test_eight_devices_train_as_one_and_go_on_to_the_bit(stories, texts, tmp_path):
    arguments = [
        f"--model={stories}", f"--data={texts}", "--max-length=64", "--max-steps=8", "--batch-size=16",
        "--learning-rate=0.002", "--save-steps=2",
    ]  # fmt: skip
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    mesh = "--mesh=data:4,model:2"
    runs = [
        run("train.sft", *arguments, f"--out={tmp_path / 'one'}"),
        run("train.sft", *arguments, f"--out={tmp_path / 'eight'}", mesh, env=eight),
    ]
    for process in runs:
        finish(process)
    stopped = run("train.sft", *arguments, f"--out={tmp_path / 'stopped'}", mesh, env=eight)
    wait_for_lines(tmp_path / "stopped" / "metrics.jsonl", 5, stopped)
    stopped.kill()
    stopped.communicate()
    finish(run("train.sft", *arguments, f"--out={tmp_path / 'stopped'}", mesh, env=eight))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "eight" / name).read_bytes(), name
    one, of_eight = (read_metrics(tmp_path / name) for name in ("one", "eight"))
    apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(one, of_eight, strict=True))
    print(f"losses on 1 and 8 devices at most {apart:.1e} apart")
    assert apart < 1e-4


MISTAKES = [
    ("sft", {"--data": "missing.jsonl"}, "missing.jsonl"),
    ("sft", {"--learning-rate": "-1"}, "learning_rate: expected a number"),
    ("sft", {"--seed": "1,1"}, "--seed: '1,1' has a number twice"),
    ("sft", {"--seed": "x"}, "--seed: expected numbers with commas between"),
    ("sft", {"--gradient-accumulation-steps": "3"}, "expected a divisor of the batch size (32), got 3"),
    ("sft", {"--mesh": "data:3"}, "mesh: expected data:N,model:M"),
    ("sft", {"--per-device-train-batch-size": "4"}, "--batch-size"),
    ("sft", {"--output-dir": "x"}, "here it is --out"),
    ("sft", {"--lora-r": "4", "--lora-target-modules": "nothing"}, "found 'nothing'"),
    ("sft", {"--eval-share": "0.1", "--eval-data": "x.jsonl"}, "expected --eval-data or --eval-share"),
    ("dpo", {"--beta": "-1"}, "--beta: expected a number"),
    ("dpo", {"--label-smoothing": "0.7"}, "label_smoothing"),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "3"}, "batch_size 32 and num_samples 3"),
    (
        "rlhf",
        {"--reward": "python:tests.test_train_commands:broken"},
        "reward python:tests.test_train_commands:broken",
    ),
]


def broken(prompts, completions, **columns):
    return [float("nan")] * len(completions)


@pytest.mark.parametrize(("command", "options", "said"), MISTAKES)
def test_mistakes_are_one_line(
    command, options, said, stories, openings, texts, preferences, tmp_path, capsys
):
    data = {"sft": texts, "dpo": preferences, "rlhf": openings}[command]
    given = {
        "--model": stories,
        "--data": data,
        "--out": tmp_path / "out",
        "--max-steps": 1,
        "--batch-size": 32,
    }
    words = [f"{name}={value}" for name, value in (given | options).items()]
    main = {"sft": sft_command, "dpo": dpo_command, "rlhf": rlhf_command}[command].main
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and said in error.splitlines()[-1], error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "model.safetensors").exists()
