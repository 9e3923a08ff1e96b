"""The training commands, as a user runs them: stops, grids, mistakes."""

import json
import os
import shutil
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
from dera_jax.commands.process import endings
from dera_jax.policies.load import fresh_policy
from dera_jax.policies.policy import TOY
from dera_jax.policies.reward_models import load_reward_model
from dera_jax.policies.save import save_policy
from dera_jax.rewards.model import reward_texts
from dera_jax.training.log import read_metrics
from tests.support.processes import ROOT, environment

OPENINGS = [
    "Once upon a time", "One day", "Lily and Ben", "Tom was", "The dog", "A bird", "Mia had", "It was"
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(stand_ins, tmp_path_factory) -> Path:
    lines = (stand_ins / "tinystories/tiny_stories_head.txt").read_text().split("\n")
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


@pytest.mark.slow
def test_sft_learns_text_from_scratch(toy, texts, tmp_path, capsys):
    out = tmp_path / "sft"
    arguments = [f"--model={toy}", "--from-scratch", f"--data={texts}", f"--out={out}", "--max-length=64"]
    arguments += ["--batch-size=16", "--learning-rate=0.005", "--eval-share=0.1"]
    assert sft_command.main([*arguments, "--max-steps=40", "--report-to=tensorboard"]) == 0
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[0]["loss"] == pytest.approx(np.log(512), abs=0.5) and lines[-1]["loss"] < 4.5
    assert lines[-1]["eval_loss"] < 5
    assert manifest(out)["method"] == "sft" and manifest(out)["finished"]
    assert any((out / "tensorboard").iterdir())
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["40"]
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == 318_160
    weights = (out / "model.safetensors").read_bytes()
    assert (out / "best" / "model.safetensors").read_bytes() == weights  # the last was the best
    # The same command has nothing left to do; another one is told what differs.
    assert sft_command.main([*arguments, "--max-steps=40"]) == 0
    assert "trained already" in capsys.readouterr().out
    assert sft_command.main([*arguments, "--max-steps=1", "--weight-decay=0.1"]) == 2
    error = capsys.readouterr().err
    assert "train_config.max_steps: 40 there, 1 now; train_config.weight_decay: 0.0 there, 0.1 now" in error
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_folder_that_holds_another_model_is_not_touched(toy, texts, capsys, tmp_path):
    import shutil

    copy = shutil.copytree(toy, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    assert sft_command.main([f"--model={toy}", f"--data={texts}", f"--out={copy}", "--max-steps=1"]) == 2
    assert "already holds a model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "pg", "ppo"])
def test_rlhf_raises_the_reward_and_keeps_beta(algorithm, toy, openings, tmp_path):
    out = tmp_path / "aligned"
    rate = 0.001 if algorithm == "ppo" else 0.002
    code = rlhf_command.main(
        [f"--model={toy}", f"--data={openings}", "--reward=keywords:happy", "--beta=0.02", f"--out={out}",
         "--max-steps=12", "--batch-size=64", "--num-samples=8", "--max-new-tokens=24",
         f"--learning-rate={rate}", f"--algorithm={algorithm}", *(["--vf-coef=1"] * (algorithm == "ppo"))]
    )  # fmt: skip
    assert code == 0
    lines = read_metrics(out)
    first, last = (np.mean([line["reward"] for line in part]) for part in (lines[:4], lines[-4:]))
    print(f"{algorithm}: reward {first:.3f} -> {last:.3f}")
    assert last > first + 0.05
    assert abs(lines[0]["kl"]) < 1e-3
    assert load_policy(str(out)).beta == 0.02 and manifest(out)["method"] == algorithm
    assert 0 < lines[0]["entropy"] < np.log(512)


@pytest.mark.slow
def test_dpo_trains_a_grid_of_adapters(toy, preferences, tmp_path, capsys):
    out, copy = tmp_path / "grid", shutil.copy(preferences, tmp_path / "copy.jsonl")
    words = [
        f"--model={toy}", f"--out={out}", "--lora-r=4", "--learning-rate=0.003", "--max-steps=15",
        "--batch-size=16", "--eval-share=0.2",
    ]  # fmt: skip
    assert dpo_command.main([*words, f"--data={preferences}", "--beta=0.1,0.5"]) == 0
    said = capsys.readouterr().err
    assert "\nbeta=0.1, 1 of 2\n" in said and "\nbeta=0.5, 2 of 2\n" in said
    # The same data from elsewhere; other data are refused before the reference has read them.
    assert dpo_command.main([*words, f"--data={copy}", "--beta=0.1,0.5"]) == 0
    assert capsys.readouterr().out.count("trained already") == 2
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:80]))
    assert dpo_command.main([*words, f"--data={copy}", "--beta=0.1,0.5"]) == 2
    assert "holds a run with other settings (data: " in capsys.readouterr().err.splitlines()[-1]
    for beta in (0.1, 0.5):
        run = out / f"beta={beta}"
        lines = read_metrics(run)
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
        assert lines[-1]["eval_accuracy"] > 0.9
        aligned = load_policy(f"{toy}+{run}")
        assert aligned.beta == beta and aligned.config.adapters[0].rank == 4
    # Less regularization, further away.
    margins = [read_metrics(out / f"beta={beta}")[-1]["margin"] / beta for beta in (0.1, 0.5)]
    assert margins[0] > margins[1]
    assert len(list((out / "cache").iterdir())) == 2


@pytest.mark.slow
def test_a_reward_model_is_trained_and_serves_as_a_reward(toy, preferences, openings, tmp_path):
    out = tmp_path / "judge"
    arguments = [f"--model={toy}", f"--data={preferences}", f"--out={out}", "--eval-share=0.2"]
    assert (
        reward_command.main([*arguments, "--max-steps=15", "--batch-size=16", "--learning-rate=0.001"]) == 0
    )
    assert read_metrics(out)[-1]["eval_accuracy"] > 0.9
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(out)
    ours = load_reward_model(str(out))
    texts = [[1, 403, 407, 261], [1, 403, 378, 267, 2]]
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits.item() for ids in texts]
    np.testing.assert_allclose(reward_texts(ours, texts), expected, atol=2e-5)
    arguments = [f"--model={toy}", f"--data={openings}", f"--reward=model:{out}", "--max-steps=2"]
    assert (
        rlhf_command.main([*arguments, f"--out={tmp_path / 'p'}", "--batch-size=16", "--max-new-tokens=8"])
        == 0
    )


def run(command, *arguments, **more):
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | more.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", command, *map(str, arguments)], cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def finish(process):
    """Waits for a process that is to end well."""
    said = process.communicate()
    assert process.returncode == 0, said


def wait_for_lines(path, count, process):
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_happened(toy, texts, tmp_path):
    """SIGTERM once, SIGKILL twice: bit-identical parameters, the same lines.

    Each start of a process takes seconds; kills at every operation are those of test_crashes.
    """
    arguments = [
        f"--model={toy}", f"--data={texts}", "--max-length=64", "--max-steps=24", "--batch-size=8",
        "--learning-rate=0.002", "--save-steps=1", "--eval-steps=6", "--eval-share=0.1",
    ]  # fmt: skip
    # Compiled once for all runs.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    finish(run("train.sft", *arguments, f"--out={straight}", env=cache))
    random = np.random.default_rng(0)
    for attempt in range(3):
        process = run("train.sft", *arguments, f"--out={stopped}", env=cache)
        wait_for_lines(stopped / "metrics.jsonl", 6 * (attempt + 1), process)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL if attempt else signal.SIGTERM)
        said = process.communicate()
        assert process.returncode in ((-signal.SIGKILL, 0) if attempt else (endings.TERMINATED,)), said
    finish(run("train.sft", *arguments, f"--out={stopped}", env=cache))
    for name in ("metrics.jsonl", "samples.jsonl", "model.safetensors", "best/model.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes(), name
    assert [line["step"] for line in read_metrics(stopped)] == list(range(24))


@pytest.mark.slow
def test_eight_devices_train_as_one_and_go_on_to_the_bit(toy, texts, tmp_path):
    arguments = [
        f"--model={toy}", f"--data={texts}", "--max-length=64", "--max-steps=8", "--batch-size=16",
        "--learning-rate=0.002", "--save-steps=2",
    ]  # fmt: skip
    eight = environment(8)
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


METHODS = {
    "reward": (reward_command, []),
    "dpo": (dpo_command, ["--sync-ref-model", "--ref-model-sync-steps=1"]),
    "kto": (dpo_command, ["--loss=kto"]),
    "ppo": (rlhf_command, ["--algorithm=ppo", "--num-ppo-epochs=2", "--target-kl=1"]),
}


def train_all(work: Path, folder: str, *mesh: str) -> None:
    """Takes two steps by every method."""
    for name, (command, words) in METHODS.items():
        given = [
            f"--model={work / 'model'}",
            f"--data={work / 'data.jsonl'}",
            f"--out={work / folder / name}",
        ]
        given += ["--max-steps=2", "--batch-size=8", *words, *mesh]
        if command is rlhf_command:
            given += ["--reward=length:2:6,keywords:a", "--max-new-tokens=8", "--num-samples=2"]
        assert command.main(given) == 0, name


@pytest.mark.slow
def test_every_method_trains_on_eight_devices_as_on_one(tmp_path):
    """A model of one small layer: its programs are quick to compile. SFT is further up."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY / "reference" / file, tmp_path)
    small = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip
    config = json.loads((TOY / "reference" / "config.json").read_text()) | small
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_policy(fresh_policy(str(tmp_path), 0), tmp_path / "model")
    rows = [
        {"prompt": f"a cat {n}", "chosen": f" sat on {n * 7 % 9}", "rejected": f" ran {n * 5 % 7} miles"}
        for n in range(16)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = [
        run("tests.commands.test_train_meshes", tmp_path, *words, env=environment(devices))
        for devices, words in ((1, ["one"]), (8, ["eight", "--mesh=data:4,model:2"]))
    ]
    for process in started:
        finish(process)
    for name in METHODS:
        for one, other in zip(*(read_metrics(tmp_path / d / name) for d in ("one", "eight")), strict=True):
            found, expected = ([line[f] for f in ("loss", "grad_norm")] for line in (other, one))
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), (name, one, other)
            assert one["grad_norm"] > 0
    # Without prompts to evaluate on, what was drawn last; of two rewards, each.
    drawn = map(json.loads, (tmp_path / "one" / "ppo" / "samples.jsonl").read_text().splitlines())
    assert [sample["step"] for sample in drawn] == [1] * 8
    line = read_metrics(tmp_path / "one" / "ppo")[0]
    assert line["reward"] == pytest.approx(line["rewards/length:2:6"] + line["rewards/keywords:a"])
    # Which of two equal log-ratios is larger says nothing.
    assert read_metrics(tmp_path / "one" / "dpo")[0]["accuracy"] == 0.5


MISTAKES = [
    ("sft", {"--data": "missing.jsonl"}, "missing.jsonl"),
    ("sft", {"--learning-rate": "-1"}, "--learning-rate: expected a number"),
    ("sft", {"--seed": "1,1"}, "--seed: '1,1' has a number twice"),
    ("sft", {"--seed": "x"}, "--seed: expected numbers with commas between"),
    ("sft", {"--gradient-accumulation-steps": "3"}, "expected a divisor of the batch size (32), got 3"),
    ("sft", {"--mesh": "data:3"}, "mesh: expected data:N,model:M"),
    ("sft", {"--per-device-train-batch-size": "4"}, "--batch-size"),
    ("sft", {"--output-dir": "x"}, "here it is --out"),
    ("sft", {"--lora-r": "4", "--lora-target-modules": "nothing"}, "found 'nothing'"),
    ("sft", {"--eval-share": "0.1", "--eval-data": "x.jsonl"}, "expected --eval-data or --eval-share"),
    ("dpo", {"--beta": "-1"}, "--beta: expected a number"),
    ("dpo", {"--label-smoothing": "0.7"}, "--label-smoothing: expected a number from 0 to 0.5"),
    ("dpo", {"--beta": "0.1,0"}, "--beta: expected a number above 0, got 0"),
    ("dpo", {"--loss": "ipo", "--label-smoothing": "0.1"}, "--label-smoothing has an effect with --loss=sig"),
    ("dpo", {"--desirable-weight": "2"}, "--desirable-weight has an effect with --loss=kto only"),
    ("dpo", {"--ref-model-mixup-alpha": "1"}, "--ref-model-mixup-alpha has an effect with --sync-ref-model"),
    ("sft", {"--lora-alpha": "8"}, "--lora-alpha has an effect with --lora-r only"),
    ("sft", {"--coordinator": "localhost:1"}, "missing --num-processes (or JAX_NUM_PROCESSES), --process-id"),
    ("rlhf", {"--reward": "keywords:a", "--num-ppo-epochs": "2"}, "has an effect with --algorithm=ppo only"),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "3"}, "expected a multiple of --num-samples=3"),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "1"}, "--algorithm=rloo expects 2 or more"),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "2"}, "takes 16 prompts a step, found 8 in"),
    (
        "rlhf",
        {"--reward": "python:tests.commands.test_train_meshes:broken"},
        "reward python:tests.commands.test_train_meshes:broken",
    ),
]


EARLY = [
    said
    for _, _, said in MISTAKES
    if said.startswith(("--", "missing --", "has an", "takes", "expected a mu"))
]
"""Told before anything is loaded, of the devices too."""


def broken(prompts, completions, **columns):
    return [float("nan")] * len(completions)


@pytest.mark.parametrize(("command", "options", "said"), MISTAKES)
def test_mistakes_are_one_line(command, options, said, toy, openings, texts, preferences, tmp_path, capsys):
    data = {"sft": texts, "dpo": preferences, "rlhf": openings}[command]
    given = {
        "--model": toy,
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
    assert said not in EARLY or error.count("\n") == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), *sys.argv[2:])
