"""Mistakes in the words of training commands: one line each."""

import pytest

from dera_jax.commands import dpo as dpo_command
from dera_jax.commands import rlhf as rlhf_command
from dera_jax.commands import sft as sft_command

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
    (
        "rlhf",
        {"--reward": "keywords:a", "--algorithm": "ppo", "--value-warmup-steps": "1"},
        "--value-warmup-steps: expe",
    ),
    (
        "rlhf",
        {"--reward": "keywords:a", "--algorithm": "ppo", "--value-lam": "2"},
        "--value-lam: expected a number",
    ),
    (
        "rlhf",
        {"--reward": "keywords:a", "--kl-estimator": "exact"},
        "has an effect with --algorithm=ppo only",
    ),
    (
        "rlhf",
        {"--reward": "keywords:a", "--certificate-samples": "-1"},
        "--certificate-samples: expected a whole",
    ),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "3"}, "expected a multiple of --num-samples=3"),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "1"}, "--algorithm=rloo expects 2 or more"),
    ("rlhf", {"--reward": "keywords:a", "--num-samples": "2"}, "takes 16 prompts a step, found 8 in"),
    (
        "rlhf",
        {"--reward": "python:tests.commands.test_train_mistakes:broken"},
        "reward python:tests.commands.test_train_mistakes:broken",
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
