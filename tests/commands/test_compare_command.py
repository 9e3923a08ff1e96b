"""The command eval.compare: on a run of this repository, and by a judge over HTTP."""

import json
import lzma
import re

import numpy as np
import pytest

from dera_jax.commands import compare as command
from dera_jax.results.reading import read_rows
from tests.support.processes import ROOT
from tests.support.stub_judge import asked, fails, says, shown

STORIES = ROOT / "results" / "stories260k_length"


# By a reward


def test_a_real_run_against_its_reference(call, tmp_path):
    """The rows of results/stories260k_length: 512 completions a strength, the reward 0 or −1."""
    out = tmp_path / "wins.json"
    reward = "length:40:60:\\n"
    words = [STORIES, STORIES, "--lambda=0,0.4,1,2", "--against=0", f"--judge={reward}", f"--out={out}"]
    code, table, _ = call(command.main, *words)
    assert code == 0
    rewards = {}
    with lzma.open(STORIES / "rows.jsonl.xz", "rt") as file:
        for row in map(json.loads, file):
            rewards[row["prompt_id"], row["sample"], row["lambda"]] = row["rewards"][reward]
    written = json.loads(out.read_text())
    assert written["judge"] == {"name": reward} and len(written["strengths"]) == 4
    for each in written["strengths"]:
        differences = [
            value - rewards[prompt, sample, 0.0]
            for (prompt, sample, strength), value in rewards.items()
            if strength == each["lambda"]
        ]
        assert (each["n"], each["wins"], each["losses"]) == (512, differences.count(1), differences.count(-1))
        # Rewards are 0 and −1: a win rate is half a difference of means, from one half.
        assert each["win_rate"]["mean"] == pytest.approx(0.5 + np.mean(differences) / 2)
        assert f"{each['win_rate']['mean']:.3f}" in table
    assert (
        written["strengths"][2]["win_rate"]["low"] > 0.7
    )  # λ = 1 keeps to the length, the reference does not


# By a model over HTTP


def longer(body):
    a, b = map(len, shown(body))
    return says(f"The longer one. [[{'A' if a > b else 'B' if b > a else 'tie'}]]")


def test_the_command_asks_each_pair_once_and_counts(stub, call, runs, tmp_path):
    stub.reply = lambda body: says("Who knows?") if "Say 11\n" in asked(body) else longer(body)
    words = [
        *runs,
        f"--judge={stub.url},m",
        f"--cache={tmp_path / 'cache'}",
        f"--out={tmp_path / 'out.json'}",
    ]
    code, table, err = call(command.main, *words, "--question=summary")
    assert code == 0 and "win rate of A" in table and "asked for the better summary, in random order" in table
    requests = len(stub.bodies)
    written = json.loads((tmp_path / "out.json").read_text())
    a, b = map(read_rows, runs)
    for each in written["strengths"]:
        lengths = {
            (row["prompt_id"], row["sample"], name): row["completion"]
            for name, rows in (("a", a), ("b", b))
            for row in rows
            if row["lambda"] == each["lambda"]
        }
        pairs = [
            (prompt, x, lengths[prompt, n, "b"]) for (prompt, n, name), x in lengths.items() if name == "a"
        ]
        unread = [(prompt, x, y) for prompt, x, y in pairs if prompt == "p11" and x != y]
        rest = [(len(x), len(y)) for prompt, x, y in pairs if (prompt, x, y) not in unread]
        assert each["failures"] == len(unread) and each["n"] == len(rest)
        assert each["wins"] == sum(x > y for x, y in rest) and each["losses"] == sum(x < y for x, y in rest)
        assert each["identical"] == sum(x == y for _, x, y in pairs)
    failures = sum(each["failures"] for each in written["strengths"])
    assert f"warning: {failures} of 108 pairs have no verdict and are left out" in err
    assert written["judge"] == {
        "name": f"{stub.url},m", "question": "summary", "both_orders": False, "seed": 0
    }  # fmt: skip
    assert call(command.main, *words, "--question=summary")[1] == table
    assert len(stub.bodies) == requests


def test_a_judge_that_always_takes_the_first_is_told_of_few_pairs_already(stub, call, runs, tmp_path):
    words = [*runs, f"--judge={stub.url},m", f"--cache={tmp_path / 'cache'}", "--lambda=2"]
    for reply, leans in (("[[A]]", True), (None, False)):
        stub.reply = (lambda body, text=reply: says(text)) if reply else longer
        code, table, err = call(command.main, *words, f"--question={'chat' if leans else 'summary'}")
        assert code == 0, err
        assert ("the judge leans to what it sees first (100%" in err) == leans
        share, count = re.search(r"what was shown first won (\d+)% of (\d+)", table).groups()
        assert int(count) < 50 and (share == "100") == leans


def test_an_interrupted_command_goes_on_where_it_ended(stub, call, runs, tmp_path):
    left = [20]

    def reply(body):
        left[0] -= 1
        return longer(body) if left[0] >= 0 else fails(500, "out of order")

    stub.reply = reply
    words = [
        *runs,
        f"--judge={stub.url},m",
        f"--cache={tmp_path / 'cache'}",
        "--retries=0",
        "--concurrency=1",
    ]
    code, _, err = call(command.main, *words)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("error: judge http") and "500 Internal Server Error" in last
    left[0], before = 10**6, len(stub.bodies)
    code, table, _ = call(command.main, *words)
    asked_for = len(stub.bodies) - before
    stub.bodies.clear()
    assert code == 0
    assert call(command.main, *words[:3], f"--cache={tmp_path / 'fresh'}")[1] == table
    assert len(stub.bodies) == asked_for + 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["A", "A", "--judge=slots"], "are one run: expected --against"),
        (["A", "B", "--judge=gpt"], "--judge: expected URL,model or a reward; unknown reward 'gpt'"),
        (["A", "B", "--judge=http://h/v1"], "--judge: expected URL,model"),
        (
            ["A", "B", "--judge=slots", "--both-orders"],
            "--both-orders has a meaning only with --judge=URL,model",
        ),
        (["A", "B", "--judge=slots", "--against=0,1"], "--against: expected one strength, found 2"),
        (["A", "B", "--judge=slots", "--against=x"], "--against: expected a finite number"),
        (["A", "B", "--judge=slots", "--lambda=7"], "A has no rows of λ = 7; it has 0, 0.5, 2"),
        (["A", "none", "--judge=slots"], "none"),
        (
            ["A", "B", "--judge=length:1:2:x"],
            "the reward needs the tokenizer, and the run's manifest names no",
        ),
        (
            ["A", "B", "--judge=http://h/v1,m", "--temperature=hot"],
            "--temperature: expected a number or none",
        ),
        (
            ["A", "B", "--judge=http://h/v1,m", "--max-failures=2"],
            "max_failures: expected a number from 0 to 1",
        ),
        (["A", "B", "--judge=http://h/v1,m", "--prompts=toy"], "--prompts has a meaning only with a reward"),
    ],
)
def test_bad_input_is_one_line(call, runs, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    names = {"A": "a", "B": "b"}
    code, out, err = call(command.main, *(names.get(word, word) for word in words))
    assert (code, out, len(err.splitlines())) == (2, "", 1) and err.startswith("error: ")
    assert message.replace("A has", "a has") in err


def test_tables_for_papers(call, runs):
    for style, expected in (("markdown", "| λ | λ of B | win rate of A |"), ("latex", r"$\lambda$ of B")):
        code, out, _ = call(command.main, *runs, "--judge=keywords:tea", f"--table={style}")
        assert code == 0 and expected in out
