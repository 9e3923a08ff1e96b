"""Win rates of runs: counted by hand, on made rows, on a run of this repository, and by a judge over HTTP."""

import gzip
import json
import random
import re

import numpy as np
import pytest

from dera_jax.analysis.compare import compare, match
from dera_jax.analysis.estimates import estimate
from dera_jax.commands import compare as command
from dera_jax.commands import score
from dera_jax.results.folder import RunFolder
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.rewards.endpoint import Endpoint
from dera_jax.rewards.judges import ModelJudge
from dera_jax.rewards.registry import Reward, parse_rewards
from tests.support.processes import ROOT
from tests.support.stub_judge import asked, fails, says, serve, shown

STORIES = ROOT / "results" / "stories260k_length"
LAMBDAS = (0.0, 0.5, 2.0)


def make_rows(seed, lambdas=LAMBDAS, prompts=12, samples=3):
    """Rows whose completions are random numbers of words, in a random order."""
    draw = random.Random(seed)
    rows = []
    for n in range(prompts):
        for sample in range(samples):
            for strength in lambdas:
                length = draw.randint(1, 4)
                words = " ".join(draw.choice(["tea", "milk"]) for _ in range(length))
                rows.append({
                    "prompt_id": f"p{n}", "sample": sample, "seed": seed, "turn": 0, "rule": "linear",
                    "lambda": strength, "beta": 0.1, "prompt": f"Say {n}", "completion": words,
                    "prompt_tokens": [1, n], "tokens": [5] * length, "length": length,
                    "finish_reason": "eos", "rewards": {}, "logprob": -1.0, "reference_logprob": -1.0,
                    "aligned_logprob": -1.0, "sampling_logprob": -1.0, "kl_to_reference": 0.1,
                    "log_normalizer": 0.0,
                })  # fmt: skip
    draw.shuffle(rows)
    return rows


def write_run(path, rows):
    with RunFolder(path, {"rule": "none"}, {"command": ["test"]}) as folder:
        folder.append(rows)
    return path


def words(completions):
    return [None if text == "milk" else float(len(text.split())) for text in completions.completions]


WORDS = Reward("python:words", words)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve() as server:
        yield server


# By a reward


@pytest.mark.parametrize("against", [None, (0.5,)])
def test_win_rates_are_those_counted_by_hand(against):
    a, b = make_rows(1), make_rows(2)
    found = compare(a, b, WORDS, against=against)
    assert [each.lambda_ for each in found] == [(s,) for s in LAMBDAS]
    for each in found:
        assert each.against == (against or each.lambda_)
        wins, prompts, failures = [], [], 0
        for prompt in sorted(f"p{n}" for n in range(12)):
            for sample in range(3):
                x, y = (
                    next(r["completion"] for r in rows if key == (r["prompt_id"], r["sample"], r["lambda"]))
                    for rows, key in (
                        (a, (prompt, sample, *each.lambda_)),
                        (b, (prompt, sample, *each.against)),
                    )
                )
                if "milk" in (x, y):
                    failures += 1
                    continue
                x, y = x.count(" "), y.count(" ")
                wins.append(1.0 if x > y else 0.5 if x == y else 0.0)
                prompts.append(prompt)
        assert (each.n, each.failures, each.missing) == (len(wins), failures, 0) and failures
        assert (each.wins, each.ties, each.losses) == tuple(wins.count(v) for v in (1.0, 0.5, 0.0))
        # Three samples of a prompt are not three prompts.
        assert each.win_rate == estimate(wins, prompts) != estimate(wins, range(len(wins)))


def test_a_run_against_itself_ties_and_the_other_way_round_is_the_rest():
    a, b = make_rows(1), make_rows(2)
    there, back = compare(a, b, WORDS), compare(b, a, WORDS)
    for x, y in zip(there, back, strict=True):
        assert x.win_rate.mean + y.win_rate.mean == pytest.approx(1)
        assert (x.win_rate.low, x.win_rate.high) == pytest.approx((1 - y.win_rate.high, 1 - y.win_rate.low))
    itself = compare(a, a, WORDS)
    assert all(each.win_rate.mean == 0.5 and each.ties == each.n for each in itself)
    assert all(each.identical == 36 for each in itself)


def test_the_order_of_rows_means_nothing():
    a, b = make_rows(1), make_rows(2)
    shuffled = [random.Random(5).sample(rows, len(rows)) for rows in (a, b)]
    assert compare(*shuffled, WORDS) == compare(a, b, WORDS)


def test_stored_rewards_are_taken_and_lacking_ones_are_computed_not_stored():
    a, b = make_rows(1), make_rows(2)
    (expected, *_) = compare(a, b, WORDS, lambdas=[(2.0,)])
    for row in a + b:
        row["rewards"]["python:words"] = -(row["length"])  # not what the function says
    (stored, *_) = compare(a, b, WORDS, lambdas=[(2.0,)])
    assert stored.win_rate != expected.win_rate and stored.failures == 0
    for row in a:
        row["rewards"].clear()
    (computed, *_) = compare(a, b, WORDS, lambdas=[(2.0,)])
    assert computed == expected and not any(row["rewards"] for row in a)


def test_rewards_that_need_the_tokenizer_say_so():
    with pytest.raises(ValueError, match="needs the tokenizer"):
        compare(make_rows(1), make_rows(2), parse_rewards("length:1:2:tea")[0])


def test_a_real_run_against_its_reference(call, tmp_path):
    """The rows of results/stories260k_length: 512 completions a strength, the reward 0 or −1."""
    out = tmp_path / "wins.json"
    reward = "length:40:60:\\n"
    words = [STORIES, STORIES, "--lambda=0,0.4,1,2", "--against=0", f"--judge={reward}", f"--out={out}"]
    code, table, _ = call(command.main, *words)
    assert code == 0
    rewards = {}
    with gzip.open(STORIES / "rows.jsonl.gz", "rt") as file:
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


# Which completions belong together


def without(rows, **fields):
    return [row for row in rows if any(row[name] != value for name, value in fields.items())]


def test_missing_cells_are_named_and_left_out_when_allowed():
    a, b = make_rows(1), make_rows(2)
    fewer = without(
        without(b, prompt_id="p3", sample=1, **{"lambda": 0.5}), prompt_id="p4", **{"lambda": 2.0}
    )
    message = (
        r"B: 4 completions are missing, the first at λ = 0.5: prompt 'p3', sample 1; complete the run, "
        "or --allow-missing"
    )
    with pytest.raises(ValueError, match=message):
        compare(a, fewer, WORDS)
    with pytest.raises(ValueError, match="A: 4 completions are missing"):
        compare(fewer, a, WORDS)
    found = compare(a, fewer, WORDS, allow_missing=True)
    assert [each.missing for each in found] == [0, 1, 3]
    assert [each.n + each.failures for each in found] == [36, 35, 33]


def test_what_both_runs_lack_at_one_strength_is_missing_too():
    a, b = (without(make_rows(seed), prompt_id="p3", **{"lambda": 0.5}) for seed in (1, 2))
    with pytest.raises(ValueError, match="A: 3 completions are missing"):
        compare(a, b, WORDS)


def test_strengths_that_are_not_there():
    a, b = make_rows(1), make_rows(2, lambdas=(0.0, 0.5))
    with pytest.raises(ValueError, match=r"B has no rows of λ = 2; it has 0, 0\.5"):
        compare(a, b, WORDS)
    with pytest.raises(ValueError, match=r"A has no rows of λ = 3; it has 0, 0\.5, 2"):
        compare(a, b, WORDS, lambdas=[(3.0,)], allow_missing=True)
    with pytest.raises(ValueError, match=r"B has no rows of λ = 3"):
        compare(a, b, WORDS, against=(3.0,), allow_missing=True)
    *_, last = compare(a, b, WORDS, allow_missing=True)
    assert (last.lambda_, last.n, last.missing, last.win_rate) == ((2.0,), 0, 36, None)


def test_other_prompts_are_refused_with_the_first_difference():
    a, b = make_rows(1), make_rows(2)
    for row in b:
        if row["prompt_id"] == "p7":
            row["prompt"] = "Say 8"
    with pytest.raises(ValueError, match=r"prompt 'p7' is 'Say 7' in A and 'Say 8' in B"):
        compare(a, b, WORDS, allow_missing=True)
    long = "x" * 1000
    for rows, end in ((a, "one"), (b, "two")):
        for row in rows:
            row["prompt"] = long + end
    with pytest.raises(ValueError, match=r"is …'x{16}one' in A and …'x{16}two' in B") as caught:
        compare(a, b, WORDS)
    assert len(str(caught.value)) < 150
    with pytest.raises(ValueError, match="no prompt in common"):
        compare(a, [{**row, "prompt_id": row["sample"]} for row in b], WORDS, allow_missing=True)
    with pytest.raises(ValueError, match="B: no rows yet"):
        compare(a, [], WORDS)


def test_later_turns_may_have_other_prompts_for_the_answers_before_are_in_them():
    def chat(seed):
        rows = make_rows(seed, prompts=2)
        later = [{**row, "turn": 1, "prompt": f"{row['prompt']} {row['completion']} Why?"} for row in rows]
        return rows + later

    (found, *_) = match(chat(1), chat(2))
    assert len(found.pairs) == 12
    assert all((x["turn"], x["sample"]) == (y["turn"], y["sample"]) for x, y in found.pairs)


# By a model over HTTP


def longer(body):
    a, b = map(len, shown(body))
    return says(f"The longer one. [[{'A' if a > b else 'B' if b > a else 'tie'}]]")


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "a", make_rows(1)), write_run(tmp_path / "b", make_rows(2))


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


def test_always_the_first_in_both_orders_is_all_ties_in_the_library_too(stub, tmp_path):
    judge = ModelJudge(Endpoint(stub.url, "m", cache=tmp_path), both_orders=True)
    for each in compare(make_rows(1), make_rows(2), judge):
        assert each.ties == each.n == 36 and each.win_rate.mean == 0.5
        assert each.first == 1 and each.win_rate.half_width == 0


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


# Grading stored rows


def test_grades_become_rewards_of_the_rows(stub, call, runs, tmp_path):
    stub.reply = lambda body: says(
        f"[[{len(asked(body)) % 10 + 1}]]" if "Say 3\n" not in asked(body) else "Hm."
    )
    words = [runs[0], f"--judge={stub.url},m", "--question=mt-bench", f"--cache={tmp_path / 'cache'}"]
    code, table, err = call(score.main, *words)
    assert code == 0 and "mt-bench" in table and "reward mt-bench gave no number for" in err
    rows = read_rows(runs[0])
    assert len(rows) == 108
    for row in rows:
        grade = row["rewards"]["mt-bench"]
        assert grade is None if row["prompt_id"] == "p3" else 1 <= grade <= 10
    manifest = read_manifest(runs[0])
    assert manifest["judges"] == {"mt-bench": f"{stub.url},m"} and "mt-bench" in manifest["extent"]["rewards"]
    requests = len(stub.bodies)
    assert "nothing to add" in call(score.main, *words)[1] and len(stub.bodies) == requests
    code, _, err = call(score.main, words[0], f"--judge={stub.url},other", *words[2:])
    assert code == 2 and f"has mt-bench already, by the judge {stub.url},m" in err


def test_too_many_unreadable_grades_leave_the_rows_alone_and_keep_the_answers(stub, call, runs, tmp_path):
    stub.reply = lambda body: says("Hm.")
    words = [runs[0], f"--judge={stub.url},m", "--question=hallucination", f"--cache={tmp_path / 'cache'}"]
    code, _, err = call(score.main, *words)
    last = err.splitlines()[-1]
    assert code == 2 and "answers have no verdict (--max-failures=0.1), the first: 'Hm.'" in last
    assert not any(row["rewards"] for row in read_rows(runs[0])) and list(
        (tmp_path / "cache").rglob("*.json")
    )
    stub.reply = lambda body: says("No")
    code, _, _ = call(score.main, *words, "--ask-again")
    assert code == 0 and {row["rewards"]["hallucination"] for row in read_rows(runs[0])} == {0.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge=http://h/v1,m"], "expected --question=hallucination|mt-bench"),
        (["--judge=slots", "--question=mt-bench"], "--judge: expected URL,model"),
        (["--judge=http://h/v1,m", "--reward=slots"], "expected --reward or --judge"),
        (["--reward=slots", "--question=mt-bench"], "--question has a meaning only with --judge=URL,model"),
        ([], "expected --reward or --judge"),
    ],
)
def test_grading_refuses_what_makes_no_sense(call, runs, words, message):
    code, out, err = call(score.main, runs[0], *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err
