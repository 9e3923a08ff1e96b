"""The command eval.score with a judge: its grades become rewards of the rows."""

import pytest

from dera_jax.commands import score
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from tests.support.stub_judge import asked, says


def test_grades_become_rewards_of_the_rows(stub, call, runs, tmp_path):
    stub.reply = lambda body: says(
        f"[[{len(asked(body)) % 10 + 1}]]" if "Say 3\n" not in asked(body) else "Hm."
    )
    words = [runs[0], f"--judge={stub.url},m", "--question=mt-bench", f"--cache={tmp_path / 'cache'}"]
    code, table, err = call(score.main, *words)
    assert code == 0 and "mt-bench" in table and "reward mt-bench was not computed for" in err
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
