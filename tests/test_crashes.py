"""A run that is killed at any operation on files, or finds the disk full, ends the next time as if it had not been."""

import functools
import json
import shutil

import pytest

from dera_jax import provenance
from dera_jax.commands import dpo, reward, rlhf, sft
from dera_jax.policies import TOY, fresh_policy, save_policy
from tests import crash_states

SMALL = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4,
}  # fmt: skip
RECORDS = [
    {"prompt": f"a cat {n}", "completion": " sat", "chosen": " sat on", "rejected": f" ran {n} miles"}
    for n in range(8)
]
EVALUATED = ["--eval-share=0.3", "--max-length=16"]
TRAININGS = {
    "sft": (sft, EVALUATED),
    "lora": (sft, [*EVALUATED, "--lora-r=1"]),
    "reward": (reward, EVALUATED),
    "dpo": (dpo, EVALUATED),
    "rloo": (rlhf, ["--eval-data={data}", "--reward=length:2:6", "--max-new-tokens=4", "--num-samples=2"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models of one small layer, and data."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY / "reference" / name, folder)
    config = json.loads((TOY / "reference" / "config.json").read_text()) | SMALL
    (folder / "config.json").write_text(json.dumps(config))
    for seed, name in enumerate(("model", "other")):
        save_policy(fresh_policy(str(folder), seed), folder / name)
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Asks git once."""
    monkeypatch.setattr(provenance, "_git", functools.cache(provenance._git))


def training(name, place, out):
    """Returns a training as the user calls it; short, with an evaluation and a checkpoint after every step."""
    command, words = TRAININGS[name]
    words = [word.format(data=place / "data.jsonl") for word in words]
    words += [f"--model={place / 'model'}", f"--data={place / 'data.jsonl'}", f"--out={out}", "--max-steps=2"]
    return command, [*words, "--batch-size=4", "--save-steps=1", "--eval-steps=1", "--learning-rate=0.01"]


def outcome(folder):
    """Returns what a run has made, without times."""
    return {
        path: crash_states.plain(path, data)
        for path, data in crash_states.snapshot(folder).items()
        if path != ".lock" and data is not None
    } | {path: None for path, data in crash_states.snapshot(folder).items() if data is None}


def check(states, out, rerun, made=outcome):
    """Goes on from every state, and compares with the last one, the end of the run that nothing stopped."""
    crash_states.lay(states[-1].folder, out)
    expected = made(out)
    assert len(states) > 10, [state.told for state in states]
    for state in states:
        crash_states.lay(state.folder, out)
        assert rerun() == 0, state.told
        found = made(out)
        assert found.keys() == expected.keys(), state.told
        assert [name for name in found if found[name] != expected[name]] == [], state.told


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_killed_at_any_operation_ends_as_if_it_had_not_been(name, place, tmp_path, capsys):
    out = tmp_path / "out"
    command, words = training(name, place, out)
    states = crash_states.record(out, lambda: command.main(words))
    with capsys.disabled():
        print(f" [{len(states)} states]", end="")
    check(states, out, lambda: command.main(words))
