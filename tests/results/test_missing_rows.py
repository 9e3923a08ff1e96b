"""What a run lacks is told from its manifest: of runs that were killed, cut or grown, in every command."""

import importlib
import json
import random
import shutil
from pathlib import Path

import pytest

from dera_jax import load_policies, read_rows, sweep
from dera_jax.commands import compare, plot, score, tune
from dera_jax.policies.policy import TOY
from dera_jax.results.asked import ended, request, tell_missing, with_request
from dera_jax.results.manifests import read_manifest
from dera_jax.rewards.registry import Reward

TEXTS = [f"Mira has {n} apples" for n in range(20)]
NAMED = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def policies():
    return load_policies(TOY / "reference", TOY / "aligned")


def swept(policies, out, prompts=TEXTS, lambdas=(0.0, 1.0), rewards="length:1:9", **more):
    arguments = {"max_new_tokens": 4, "rows": 16} | more
    return list(sweep(policies, prompts, lambdas, rewards, out=out, **arguments))


@pytest.fixture(scope="module", params=["numbers", "names"])
def whole(request, policies, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    swept(policies, out, TEXTS if request.param == "numbers" else NAMED, num_samples=2)
    return out


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def keep(run, kept):
    rows = [row for row in read_rows(run) if kept(row)]
    (run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def number(row):
    return int(str(row["prompt_id"]).removeprefix("p"))


def without_requests(run):
    """Makes the manifest what it was when requests were not kept."""
    manifest = read_manifest(run)
    del manifest["asked"]
    (run / "manifest.json").write_text(json.dumps(manifest))


CUTS = {
    "whole prompts": (lambda row: number(row) < 12, 32),
    "more than half of the prompts": (lambda row: number(row) < 4, 64),
    "a strength": (lambda row: row["lambda"] == 0, 40),
    "a sample": (lambda row: row["sample"] == 0, 40),
    "one row": (lambda row: (number(row), row["sample"], row["lambda"]) != (7, 1, 1), 1),
    "the second half": (lambda row: number(row) < 10 or (number(row) == 10 and row["lambda"] == 0), 38),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_lost_rows_are_counted(cut, old, run):
    kept, lacking = CUTS[cut]
    names = {number(row): row["prompt_id"] for row in read_rows(run)}
    if old:
        without_requests(run)
    rows = keep(run, kept)
    assert len(rows) == 80 - lacking
    there = {(row["lambda"], number(row), row["sample"]) for row in rows}
    x, n, s = min({(x, n, s) for x in (0, 1) for n in range(20) for s in (0, 1)} - there)
    told = tell_missing(run, rows)
    count = "1 completion is" if lacking == 1 else f"{lacking} of 80 completions are"
    assert told.startswith(f"{count} missing, the first at λ = {x}")
    # Names of prompts that no row has are in no older manifest.
    if not (old and isinstance(names[n], str) and all(number(row) != n for row in rows)):
        assert told.endswith(f": prompt {names[n]!r}, sample {s}")


def test_every_command_says_so(run, tmp_path, capsys):
    keep(run, lambda row: number(row) < 17)
    judge = ["--against=0", "--judge=length:1:9"]
    commands = {
        plot.main: [run, f"--out={tmp_path / 'a.png'}"],
        tune.main: [run],
        compare.main: [run, run, *judge],
    }
    for main, words in commands.items():
        assert main(list(map(str, words))) == 2
        err = capsys.readouterr().err
        assert "12 of 80 completions are missing" in err and "--allow-missing" in err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert main([*map(str, words), "--allow-missing"]) == 0
        assert "12 of 80 completions are missing" in capsys.readouterr().err
    assert score.main([str(run), "--reward=keywords:a"]) == 0
    assert "12 of 80 completions are missing" in capsys.readouterr().err


def test_strengths_that_are_not_compared_may_lack_rows(run, capsys):
    keep(run, lambda row: row["lambda"] == 0 or number(row) < 3)
    other = shutil.copytree(run, run.parent / "other")
    words = [str(run), str(other), "--judge=length:1:9"]
    assert compare.main([*words, "--lambda=0"]) == 0
    assert compare.main([*words, "--lambda=1"]) == 2
    assert "34 of 40 completions are missing" in capsys.readouterr().err


def test_a_run_that_is_killed_knows_what_it_lacks(policies, tmp_path, monkeypatch):
    """It has written what it asks for before its first row, and an end only when it has come to it."""
    monkeypatch.setattr(importlib.import_module("dera_jax.sweeps.run"), "FLUSH_ROWS", 1)
    out = tmp_path / "run"
    started = sweep(policies, NAMED, [0.0, 1.0], out=out, max_new_tokens=4, rows=4)
    for _ in range(7):
        next(started)
    started.close()
    assert read_manifest(out)["extent"] == {}
    there = len(read_rows(out))
    assert tell_missing(out, read_rows(out)).startswith(f"{40 - there} of 40 completions are missing")
    swept(policies, out, NAMED, rewards=())
    assert tell_missing(out, read_rows(out)) is None and read_manifest(out)["asked"][0]["ended"]
    # It grows, and is killed again.
    more = sweep(policies, NAMED, [0.0, 1.0, 2.0], out=out, max_new_tokens=4, rows=4)
    for _ in range(41):
        next(more)
    more.close()
    there = len(read_rows(out))
    assert tell_missing(out, read_rows(out)).startswith(f"{60 - there} of 60 completions are missing")


def test_a_look_at_few_prompts_makes_no_run_incomplete(policies, tmp_path):
    out = tmp_path / "run"
    swept(policies, out)
    swept(policies, out, TEXTS[:3], [0.5])
    assert tell_missing(out, read_rows(out)) is None
    keep(out, lambda row: row["lambda"] != 0.5 or row["prompt_id"] != 1)
    assert (
        tell_missing(out, read_rows(out))
        == "1 completion is missing, the first at λ = 0.5: prompt 1, sample 0"
    )


def test_strengths_of_the_prompts_own(policies, tmp_path):
    out = tmp_path / "run"
    own = [prompt | {"lambda": float(n > 4)} for n, prompt in enumerate(NAMED)]
    swept(policies, out, own, None)
    # Most prompts have λ = 1, and lack none of λ = 0.
    assert tell_missing(out, read_rows(out)) is None
    keep(out, lambda row: number(row) != 2)
    assert tell_missing(out, read_rows(out)) == "1 completion is missing, the first: prompt 'p2', sample 0"


def test_counts_are_those_of_listed_cells():
    """Against sets, of random requests."""
    rng = random.Random(0)
    for _ in range(200):
        asked, cells = [], set()
        for _ in range(rng.randrange(1, 4)):
            ids = (
                list(range(rng.randrange(1, 6)))
                if rng.random() < 0.5
                else rng.sample([0, 1, 4, 9, "a", "b"], 3)
            )
            samples = rng.randrange(1, 4)
            strengths = [(x,) for x in rng.sample([0.0, 0.5, 1.0], 2)]
            asked = with_request(asked, request(ids, samples, strengths))
            cells |= {(p, s, x) for p in ids for s in range(samples) for (x,) in strengths}
        there = rng.sample(sorted(cells, key=str), rng.randrange(len(cells)))
        # Whatever most have, the others should have.
        places = {(p, s) for p, s, _ in there}
        shared = {x for x in (0.0, 0.5, 1.0) if 2 * sum(c[2] == x for c in there) > len(places)}
        wanted = cells | {(p, s, x) for p, s in places for x in shared if any(c[2] == x for c in there)}
        rows = [{"prompt_id": p, "sample": s, "lambda": x} for p, s, x in there]
        told = told_of(asked, rows)
        lacking = len(wanted) - len(there)
        if not lacking:
            assert told is None
        else:
            count = "1 completion is" if lacking == 1 else f"{lacking} of {len(wanted)} completions are"
            assert told.startswith(f"{count} missing, the first at")


def told_of(asked, rows):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        manifest = {"format": 1, "identity": {}, "extent": {}, "asked": asked}
        (Path(folder) / "manifest.json").write_text(json.dumps(manifest))
        return tell_missing(folder, rows, to_its_end=False)


def test_a_stranger_can_ask_for_more_than_can_be_listed():
    asked = [{"num_prompts": 2**60, "num_samples": 2**60, "lambda": ["0"], "ended": True}]
    told = told_of(asked, [{"prompt_id": 0, "sample": 0, "lambda": 0}])
    assert told == f"{2**120 - 1} of {2**120} completions are missing, the first at λ = 0: prompt 0, sample 1"


def test_requests_hold_and_end_each_other():
    small, large = request([0, 1], 1, [(0.0,)]), request(range(3), 2, [(0.0,), (1.0,)])
    named = request(["a", 1], 1, [(0.0,)])
    assert "prompt_ids" not in small and named["prompt_ids"] == ["a", 1]
    assert with_request([small], large) == [large] == with_request([large], small)
    assert with_request([small], named) == [small, named]
    assert [each["ended"] for each in ended([small, large, named], large)] == [True, True, False]
    own = request([0, 1], 1, None)
    assert with_request([large], own) == [large, own]


def test_a_smaller_request_writes_nothing(policies, run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    prompts = NAMED if isinstance(read_rows(run)[0]["prompt_id"], str) else TEXTS
    swept(policies, run, prompts[:3], [1.0])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# Rewards that a folder has


def test_new_rows_get_the_rewards_that_names_alone_decide(policies, tmp_path, capsys):
    out = tmp_path / "run"
    mine = Reward("python:mine:f", lambda completions: [1.0] * len(completions.completions))
    odd = Reward("length:x,python:os:getpid", lambda completions: [2.0] * len(completions.completions))
    swept(policies, out, TEXTS[:8], (0.0,), [*parse("length:1:9,keywords:a"), mine, odd])
    swept(policies, out, TEXTS[:8], (0.0, 1.0), "length:2:3")
    for row in read_rows(out):
        names = {"length:2:3", "length:1:9", "keywords:a"}
        assert row["rewards"].keys() == names | ({"python:mine:f", odd.name} if row["lambda"] == 0 else set())
        assert row["rewards"]["length:1:9"] == (
            0.0 if row["finish_reason"] != "length" and 1 <= row["length"] <= 9 else -1.0
        )
    assert score.main([str(out), "--reward=keywords:b"]) == 0
    err = capsys.readouterr().err
    command = f"python -m eval.score {out} --reward=python:mine:f"
    assert f"reward python:mine:f was not computed for 8 of 8 completions: {command} does it\n" in err
    assert tune.main([str(out), "--objective=python:mine:f"]) == 2
    assert f"{command} adds it" in capsys.readouterr().err


def parse(text):
    from dera_jax import parse_rewards

    return parse_rewards(text)
