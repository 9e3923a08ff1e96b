"""`generate`, `sweep` and `score` as Python code calls them: strengths, rewards, settings, records of no use."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dera_jax import generate, load_policies, read_rows, score, sweep
from dera_jax.commands import dpo, sft
from dera_jax.commands import score as score_command
from dera_jax.commands import sweep as sweep_command
from dera_jax.policies.policy import TOY
from dera_jax.results.manifests import read_manifest

FEW = {"max_new_tokens": 4, "rows": 2}
ASKED = ["Mira visits Ida", "How is"]


@pytest.fixture(scope="module")
def toy():
    return load_policies()


def test_rewards_and_strengths_as_python_gives_them(toy, tmp_path):
    def exclaim(completions, topic, **columns):
        return np.array([len(text) for text in completions])

    prompts = [{"prompt": text, "topic": "x"} for text in ASKED]
    given = {"rewards": [exclaim, {"short": "length:0:3"}], **FEW}
    rows = list(sweep(toy, prompts, "0:1:0.5", **given, out=tmp_path / "run"))
    assert [row["lambda"] for row in rows if row["prompt_id"] == 0] == [0.0, 0.5, 1.0]
    for row in rows:
        cut = row["finish_reason"] == "length"
        assert row["rewards"] == {"exclaim": float(len(row["completion"])), "short": -1.0 if cut else 0.0}
    again = list(sweep(toy, prompts, [0, np.float32(0.5), "1"], **given, out=tmp_path / "run"))
    assert sorted(map(str, again)) == sorted(map(str, rows)) == sorted(map(str, read_rows(tmp_path / "run")))


def test_a_reward_that_fails_keeps_the_rows(toy, tmp_path, monkeypatch):
    # Else a slow compilation has the first row written, and judged, before the second one is there.
    monkeypatch.setattr("dera_jax.sweeps.run.FLUSH_SECONDS", float("inf"))

    def broken(completions):
        raise SystemExit(0)

    with pytest.raises(ValueError, match=r"^reward broken: SystemExit: 0 \(.*test_python_api\.py:\d+\)$"):
        list(sweep(toy, ASKED, 1, broken, **FEW, out=tmp_path / "run"))
    assert len(read_rows(tmp_path / "run")) == 2


@pytest.mark.parametrize("call", [generate, sweep])
def test_a_setting_under_another_name_is_told_ours(toy, call):
    for name, hint in {
        "max_tokens": "here it is max_new_tokens",
        "temprature": "here it is temperature",
        "n": "here it is num_samples",
        "nonsense_of_mine": "there are max_new_tokens, .*rows",
    }.items():
        with pytest.raises(TypeError, match=rf"^{call.__name__}\(\) has no setting {name}[:;] {hint}"):
            list(call(toy, ["a"], 1, **{name: 5}))


def test_completions_know_their_prompt(toy):
    found = generate(toy, ASKED, "1/2", **FEW)
    assert [completion.prompt for completion in found] == ASKED


def test_score_says_what_is_wrong(toy):
    assert len(score(toy, ["a", "b"], [" c", " d"], ["0", 1])[0].logprobs) == 2
    for completions, found in ((["a"], "1"), ("ab", "a string")):
        with pytest.raises(
            ValueError, match=f"completions: expected one for each of 2 prompts, found {found}"
        ):
            score(toy, ["a", "b"], completions, [1])


def test_a_prompt_of_no_use_is_left_out_of_a_sweep(toy):
    long = "Mira visits " * 500
    with pytest.warns(
        UserWarning, match=r"2 used; 2 records dropped \(1 prompt is empty.*; 1 prompt too long"
    ):
        rows = list(sweep(toy, [ASKED[0], "", long, ASKED[1]], 1, **FEW))
    assert [row["prompt_id"] for row in rows] == [0, 3]
    for call in (lambda: list(sweep(toy, [long], 1, **FEW)), lambda: generate(toy, ["a", long], 1, **FEW)):
        with pytest.raises(
            ValueError, match=r"prompt [01]: \d+ tokens and 4 new ones do not fit the context"
        ):
            call()


# The same in commands


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, records):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return name

    return write


DECODE = ["--lambda=1", "--max-new-tokens=4", "--rows=2", "--out=run"]


def test_a_sweep_goes_on_without_what_cannot_be_used(call, write):
    name = write("p.jsonl", [{"prompt": ASKED[0]}, {"prompt": ""}, {"prompt": "visits " * 2000}])
    code, _, err = call(sweep_command.main, f"--prompts={name}", *DECODE)
    assert code == 0 and len(read_rows("run")) == 1
    assert "warning: p.jsonl: 1 used; 2 records dropped (1 prompt is empty, the first p.jsonl:2; " in err
    assert read_manifest("run")["extent"]["num_prompts"] == 1


@pytest.mark.parametrize("line", ["raise SystemExit(3)", "raise KeyboardInterrupt", "1 / 0"])
def test_a_reward_that_fails_says_where_and_that_the_rows_are_kept(fails, call, write, line):
    module = f"broken_{abs(hash(line))}"
    Path(f"{module}.py").write_text(f"def f(completions):\n    {line}\n")
    words = [f"--prompts={write('p.jsonl', [{'prompt': text} for text in ASKED])}", *DECODE]
    told = fails(sweep_command.main, *words, f"--reward=mine=python:{module}:f")
    assert told.startswith("error: reward mine: ") and f"({module}.py:2)" in told
    assert "run keeps all completions; once the reward is mended, the same command goes on" in told
    assert len(read_rows("run")) == 2
    told = fails(sweep_command.main, *words, f"--reward=mine=python:{module}:f")
    assert f"({module}.py:2); run keeps all completions" in told
    code, out, _ = call(sweep_command.main, *words, "--reward=mine=length:1:9")
    assert code == 0 and "mine" in out
    assert [list(row["rewards"]) for row in read_rows("run")] == [["mine"]] * 2


def test_the_default_prompts_are_named(refused, tmp_path):
    models = [f"--reference={TOY / 'reference'}", f"--aligned={TOY / 'aligned'}"]
    line = refused(sweep_command.main, *models, *DECODE[:3], f"--out={tmp_path / 'run'}")
    assert "without --prompts, chats are asked, and neither model has a chat template" in line


def test_pairs_are_scored_without_those_of_no_use(call, write):
    talk = "\n\nHuman: a\n\nAssistant:"
    records = [
        {"chosen": talk + " Ida", "rejected": talk + " Orsa"},
        {"prompt": "A", "chosen": " b", "rejected": " b"},
    ]
    code, out, err = call(score_command.main, f"--pairs={write('p.jsonl', records)}", "--lambda=0,1")
    assert code == 0 and out.startswith("1 pairs")
    assert (
        "warning: p.jsonl: 1 used; 1 record dropped (1 chosen equal to rejected, the first p.jsonl:2)" in err
    )


@pytest.mark.slow
@pytest.mark.parametrize("train", [sft, dpo])
def test_a_training_goes_on_without_what_cannot_be_used(call, refused, write, train):
    good = {"prompt": "Mira", "chosen": " visits Ida", "rejected": " is Ida"}
    words = [f"--model={TOY / 'reference'}", "--max-steps=1", "--batch-size=1", "--out=trained"]
    bad = [{**good, "chosen": ""}, {**good, "rejected": good["chosen"]}, {**good, "prompt": "a \ud83d"}]
    code, _, err = call(train.main, *words, f"--data={write('d.jsonl', [good, *bad])}")
    assert code == 0
    assert (
        "warning: d.jsonl: 1 used" in err
        and "; 3 records dropped (1 chosen is empty, the first d.jsonl:2" in err
    )
    words[-1] = "--out=other"
    assert "d.jsonl:1: chosen is empty" in refused(train.main, *words, f"--data={write('d.jsonl', bad[:1])}")


@pytest.mark.slow
def test_what_is_no_model_and_no_completion_is_told(toy):
    with pytest.raises(ValueError, match="at least one aligned model"):
        load_policies(TOY / "reference", [])
    # As users run it: the tests' check of annotations stands before our own.
    for call, told in (
        (
            "load_policies(5, 6)",
            "TypeError: expected models as text or paths, several aligned ones in a list; found 5",
        ),
        (
            "score(load_policies(), ['a', 'b'], ['tea', None], 1)",
            "TypeError: completion 1: expected a text or token ids, found None",
        ),
    ):
        code = f"from dera_jax import load_policies, score; {call}"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.stderr.splitlines()[-1].startswith(told), ended.stderr
