"""A run that is killed at any operation on files, or finds the disk full, ends the next time as if it had not been."""

import functools
import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import combine, dpo, reward, rlhf, score, sft, sweep
from dera_jax.common import provenance
from dera_jax.policies import tensors
from dera_jax.policies.load import fresh_policy
from dera_jax.policies.manifests import find_damage, read_manifest
from dera_jax.policies.policy import TOY
from dera_jax.policies.save import save_policy
from dera_jax.training import loop, supervised
from tests.support import crash_states
from tests.support.processes import ROOT

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
    "dpo": (dpo, [*EVALUATED, "--save-only-model"]),
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
    """Asks git once, and traces a step and an evaluation once: all runs of a test are of one command."""
    monkeypatch.setattr(provenance, "_git", functools.cache(provenance._git))
    for module, name in ((loop, "make_update"), (supervised, "make_evaluation")):
        monkeypatch.setattr(module, name, once(getattr(module, name)))


def once(make):
    made = []

    def again(*args, **kwargs):
        made.extend([] if made else [make(*args, **kwargs)])
        return made[0]

    return again


def train(name, place, out, steps=1):
    """Returns a short training as a command and its words: an evaluation and a checkpoint after every step."""
    command, words = TRAININGS[name]
    words = [word.format(data=place / "data.jsonl") for word in words]
    words += [f"--model={place / 'model'}", f"--data={place / 'data.jsonl'}", f"--out={out}"]
    words += ["--batch-size=4", "--save-steps=1", "--eval-steps=1", "--learning-rate=0.01"]
    return command, [*words, f"--max-steps={steps}"]


def outcome(folder):
    """Returns what a run has made, without times; of a checkpoint's arrays the checksums in its record."""
    return {
        path: data if data is None else crash_states.plain(path, data)
        for path, data in crash_states.snapshot(folder).items()
        if path != ".lock" and "/state/" not in path
    }


def check(states, out, rerun, made=outcome):
    """Goes on from every state, and compares with the last one, the end of the run that nothing stopped."""
    crash_states.lay(states[-1].folder, out)
    expected = made(out)
    for state in states:
        crash_states.lay(state.folder, out)
        assert rerun() == 0, state.told
        found = made(out)
        assert found.keys() == expected.keys(), state.told
        assert [name for name in found if found[name] != expected[name]] == [], state.told


def told(capsys, states):
    with capsys.disabled():
        print(f" [{len(states)} states]", end="")
    return states


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_killed_at_any_operation_ends_as_if_it_had_not_been(name, place, tmp_path, capsys):
    out = tmp_path / "out"
    command, words = train(name, place, out, steps=2 if name == "sft" else 1)
    states = told(capsys, crash_states.record(out, lambda: command.main(words)))
    assert len(states) > 30
    check(states, out, lambda: command.main(words))


def test_a_combination_killed_at_any_operation_is_made_the_next_time(place, tmp_path, capsys):
    out = tmp_path / "out"
    words = [f"--reference={place / 'model'}", f"--aligned={place / 'other'}", f"--out={out}", "--lambda=0.5"]
    states = told(capsys, crash_states.record(out, lambda: combine.main(words)))

    def rerun():
        code = combine.main(words)
        # Once it is finished the command refuses, as it would any other model.
        return 0 if code == 2 and "already holds a model" in capsys.readouterr().err else code

    check(states, out, rerun)


@pytest.mark.parametrize(("before", "after"), [(4000, 4000), (10**9, 4000), (4000, 10**9)])
def test_a_reader_finds_the_old_weights_the_new_or_none(before, after, place, tmp_path, monkeypatch):
    """While a model of one file or of shards takes the place of another."""
    out = tmp_path / "model"
    policies = [load_policy(str(place / name)) for name in ("model", "other")]
    for policy, size in zip(policies, (before, after), strict=True):
        monkeypatch.setattr(tensors, "SHARD_SIZE", size)
        states = crash_states.record(out, lambda policy=policy: save_policy(policy, out, {}))
    assert find_damage(out, read_manifest(out)) is None
    seen = set()
    for state in states:
        crash_states.lay(state.folder, out)
        try:
            params = load_policy(str(out)).params
        except ValueError as error:
            assert "expected model.safetensors, found none" in str(error), state.told
            continue
        same = [jax.tree.all(jax.tree.map(np.array_equal, params, policy.params)) for policy in policies]
        assert any(same), state.told
        seen.add(same.index(True))
        assert find_damage(out, read_manifest(out)) is not None or same[not same[0] or same[1]]
    assert seen == {0, 1}


def swept(place, out):
    words = [f"--reference={place / 'model'}", f"--aligned={place / 'other'}", f"--out={out}"]
    words += [f"--prompts={place / 'data.jsonl'}", "--num-prompts=2", "--lambda=0,1", "--max-new-tokens=4"]
    return [*words, "--rows=4"]


def rows_and_reports(out):
    """Returns what a sweep has made; rows may come in another order, commands are those that there were."""
    made = outcome(out)
    rows = made["rows.jsonl"].splitlines()
    return made | {"rows.jsonl": sorted(rows)}


@pytest.mark.slow
def test_a_sweep_killed_at_any_operation_is_completed(place, tmp_path, capsys):
    out = tmp_path / "out"
    words = swept(place, out)
    states = told(capsys, crash_states.record(out, lambda: sweep.main(words)))
    check(states, out, lambda: sweep.main(words), rows_and_reports)


@pytest.mark.slow
@pytest.mark.parametrize("adding", ["sweep", "score"])
def test_adding_a_reward_killed_at_any_operation_is_completed(adding, place, tmp_path, capsys):
    out = tmp_path / "out"
    words = swept(place, out)
    assert sweep.main(words) == 0
    reward = "--reward=length:2:6"
    command, given = (sweep, [*words, reward]) if adding == "sweep" else (score, [str(out), reward])
    states = told(capsys, crash_states.record(out, lambda: command.main(given)))
    check(states, out, lambda: command.main(given), rows_and_reports)


@pytest.mark.slow
def test_a_disk_full_at_any_write_of_the_model_is_one_line_and_the_next_time_completes(
    place, tmp_path, capsys
):
    out = tmp_path / "out"
    command, words = train("sft", place, out)
    states = crash_states.record(out, lambda: command.main(words))
    saved = next(
        s for s in states if "checkpoints/1/record.json" in s.folder and "config.json" not in s.folder
    )
    expected = outcome(out)
    for number in range(100):
        crash_states.lay(saved.folder, out)
        capsys.readouterr()
        with crash_states.Full(out, number) as disk:
            code = command.main(words)
        said = capsys.readouterr().err
        if code == 0:
            break
        assert code == 2 and said.splitlines()[-1].startswith("error: "), (number, said)
        assert "Traceback" not in said and "No space left" in said, (number, said)
        assert command.main(words) == 0
        assert outcome(out) == expected, number
    assert number > 20 and disk.left >= 0, number


def parts(folder):
    """Returns the keys of the checkpoints and of the rest, which are written at the same time."""
    told = [{}, {}]
    for path, data in folder.items():
        told[path.split("/")[0] == "checkpoints"][path] = data
    return [crash_states.key(each, crash_states.OF_ANOTHER_RUN) for each in told]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "number"), [("best/manifest.json", 1), ("out/model.safetensors", 1)])
def test_a_real_kill_leaves_a_state_that_was_recorded(where, number, place, tmp_path):
    out = tmp_path / "out"
    command, words = train("sft", place, out)
    states = crash_states.record(out, lambda: command.main(words))
    recorded = [set(each) for each in zip(*(parts(state.folder) for state in states), strict=True)]
    expected = outcome(out)
    shutil.rmtree(out)
    call = [sys.executable, "-m", "tests.support.crash_states", where, str(number), command.__name__, *words]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = parts(crash_states.snapshot(out))
    assert all(part in known for part, known in zip(left, recorded, strict=True))
    assert command.main(words) == 0
    assert outcome(out).keys() == expected.keys()
