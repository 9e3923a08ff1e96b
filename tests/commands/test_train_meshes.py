"""Training commands on eight devices: as on one.

What needs several devices runs as `python -m tests.commands.test_train_meshes FOLDER NAME [--mesh=MESH]`.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from dera_jax.commands import dpo as dpo_command
from dera_jax.commands import reward as reward_command
from dera_jax.commands import rlhf as rlhf_command
from dera_jax.policies.load import fresh_policy
from dera_jax.policies.policy import TOY
from dera_jax.policies.save import save_policy
from dera_jax.training.log import read_metrics
from tests.support.processes import environment, finish, run, wait_for_lines


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


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), *sys.argv[2:])
