"""Runs whose completions are chosen among candidates: what folders hold, how they go on, and what is refused."""

import signal
from dataclasses import replace

import pytest

from dera_jax import best_of, generate, load_policies, read_rows, sweep
from dera_jax.commands import sweep as sweep_command
from dera_jax.decoding.complete import MixtureDraw, complete
from dera_jax.results.manifests import read_manifest
from dera_jax.rewards.registry import Reward
from dera_jax.search.best_of import best_of_poisson, soft_best_of
from dera_jax.search.blocks import blocks
from dera_jax.search.parsing import parse_draw
from tests.support import processes
from tests.support.swept import by_key

TEXTS = ["Mira visits Ida.", "Tom"]
SETTINGS = {"max_new_tokens": 24, "rows": 4, "num_samples": 2}
SCORE = "length:10:20*2+log-ratio*0.1"
DRAWS = [best_of(3, SCORE), best_of_poisson(1.5, SCORE), soft_best_of(3, 0.5, SCORE)]


@pytest.fixture(scope="module")
def policies():
    return load_policies()


def swept(policies, lambdas=(0, 0.5, 1), **given):
    return by_key(list(sweep(policies, TEXTS, list(lambdas), **(SETTINGS | given))))


def chosen(rows):
    return {key: (row["tokens"], row["search"]["candidates"]) for key, row in rows.items()}


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_rows_say_what_was_found_and_do_not_hang_on_how(policies, draw):
    rows = swept(policies, draw=draw)
    for row in rows.values():
        assert row["draw"] == draw.name and list(row)[-1] == "search"
        found = row["search"]
        assert found["candidates"] >= 1 and found["tokens"] >= len(row["tokens"])
        assert (found["runner_up"] is None) == (found["candidates"] == 1)
    read = parse_draw(draw.name)
    assert read.name == draw.name and swept(policies, draw=read) == rows
    for plain in (MixtureDraw(share=False), MixtureDraw(share=False, draft="ngram")):
        assert chosen(swept(policies, draw=parse_draw(draw.name, plain))) == chosen(rows)
    assert chosen(swept(policies, draw=draw, rows=3)) == chosen(rows)


def test_one_candidate_is_the_plain_row(policies):
    plain = swept(policies)
    for key, row in swept(policies, draw=best_of(1, SCORE)).items():
        assert {name: row[name] for name in plain[key]} == plain[key]
        assert row.keys() - plain[key].keys() == {"draw", "search"}


def test_more_candidates_have_a_better_score(policies):
    def mean(n):
        rows = swept(policies, draw=best_of(n, "log-ratio")).values()
        return sum(row["search"]["score"] for row in rows) / len(rows)

    assert mean(1) < mean(3) < mean(8)


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_a_run_that_goes_on_is_an_unbroken_one(policies, tmp_path, draw):
    whole = swept(policies, out=tmp_path / "whole", draw=draw)
    broken = sweep(policies, TEXTS, [0, 0.5], out=tmp_path / "a", draw=draw, **SETTINGS)
    next(broken)
    broken.close()
    assert chosen(swept(policies, out=tmp_path / "a", draw=draw)) == chosen(whole)
    assert chosen(by_key(read_rows(tmp_path / "a"))) == chosen(whole)
    assert read_manifest(tmp_path / "a")["identity"]["draw"] == draw.name


def test_a_folder_is_of_one_draw(policies, tmp_path):
    out = tmp_path / "run"
    spec = "length:10:20"
    swept(policies, out=out, draw=best_of(2, spec))
    for other in (complete, best_of(3, spec), best_of(2, "length:10:21"), soft_best_of(2, 1, spec)):
        with pytest.raises(ValueError, match="draw"):
            swept(policies, out=out, draw=other)
    swept(policies, out=out, draw=best_of(2, spec, MixtureDraw(share=False)))


def test_a_score_that_reads_another_file_is_another_draw(policies, tmp_path):
    ratings = tmp_path / "ratings.txt"
    ratings.write_text("happy\t1.0\n")
    draw = f"best-of:2:lexicon:{ratings}"
    swept(policies, out=tmp_path / "run", draw=parse_draw(draw))
    swept(policies, out=tmp_path / "run", draw=parse_draw(draw))
    ratings.write_text("happy\t2.0\n")
    with pytest.raises(ValueError, match="draw_fingerprint is"):
        swept(policies, out=tmp_path / "run", draw=parse_draw(draw))


def test_a_score_that_fails_keeps_what_has_ended(policies, tmp_path):
    calls = []

    def score(seen):
        calls.append(seen)
        return [float("nan") if len(calls) == 6 else 1.0 for _ in seen.completions]

    draw = best_of(2, Reward("mine", score))
    with pytest.raises(ValueError, match=r"reward mine: .* found nan for prompt \d, candidate 0"):
        swept(policies, out=tmp_path / "run", draw=draw)
    assert len(read_rows(tmp_path / "run")) == 5
    assert chosen(swept(policies, out=tmp_path / "run", draw=draw)) == chosen(swept(policies, draw=draw))


@pytest.mark.parametrize("wrong", ["nan", "count", "raise"])
def test_a_score_that_fails_half_way_through_a_search_keeps_what_has_ended(policies, tmp_path, wrong):
    calls = []

    def mine(completions, **columns):
        calls.append(len(completions))
        if len(calls) == 9:
            if wrong == "raise":
                raise RuntimeError("out of order")
            return [1.0] if wrong == "count" else [float("nan")] * len(completions)
        return [float(len(text)) for text in completions]

    told = {"nan": "found nan for", "count": "expected 4 numbers, found 1", "raise": "out of order"}
    with pytest.raises(ValueError) as caught:
        swept(policies, out=tmp_path / "run", rows=4, draw=blocks(4, 8, mine))
    # One call for all candidates of a decision; they are named with their prompt.
    assert (
        told[wrong] in str(caught.value)
        and "candidate" in str(caught.value)
        and "prompt " in str(caught.value)
    )
    assert set(calls) == {4} and 0 < len(read_rows(tmp_path / "run")) < len(swept(policies, draw=complete))


def test_single_calls_take_it(policies):
    made = generate(policies, TEXTS, 0.5, draw=best_of(4, "log-ratio"), max_new_tokens=24)
    assert [done.request.attempt for done in made] == [0, 0]
    assert all(done.search.candidates == 4 for done in made)
    with pytest.raises(ValueError, match="reward slots: expected slots"):
        generate(policies, TEXTS, 0.5, draw=best_of(4, "slots"), max_new_tokens=24)
    with pytest.raises(ValueError, match="N: expected a whole number, at least 1, got 0"):
        best_of(0, "log-ratio")


def test_a_turn_follows_the_chosen_answers(policies):
    """Each turn of a conversation has candidates of its own."""
    templated = [
        replace(policy, template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
        for policy in policies
    ]
    rows = list(
        sweep(
            templated,
            [{"turns": ["Mira visits Ida.", "And Tom?"]}],
            [0, 1],
            draw=best_of(3, SCORE),
            **SETTINGS,
        )
    )
    first = {(row["sample"], row["lambda"]): row for row in rows if row["turn"] == 0}
    second = [row for row in rows if row["turn"] == 1]
    assert len(first) == len(second) == 4
    for row in second:
        assert row["search"]["candidates"] == 3
        assert row["prompt"][1]["content"] == first[row["sample"], row["lambda"]]["completion"]


def words(out):
    return ["--num-prompts=3", "--num-samples=12", "--max-new-tokens=16", "--rows=8", "--lambda=0,1",
            "--draw=best-of:2:length:5:9", f"--out={out}"]  # fmt: skip


def test_a_sweep_that_is_killed_goes_on(call, tmp_path):
    """Before it writes the second of its portions of rows."""
    assert call(sweep_command.main, *words(tmp_path / "whole"))[0] == 0
    at = ["killed/rows.jsonl", "4", "dera_jax.commands.sweep"]
    killed = processes.run("tests.support.crash_states", *at, *words(tmp_path / "killed"))
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    there = len(read_rows(tmp_path / "killed"))
    assert call(sweep_command.main, *words(tmp_path / "killed"))[0] == 0
    whole, rows = (by_key(read_rows(tmp_path / name)) for name in ("whole", "killed"))
    print(f"{there} of {len(whole)} rows were there")
    assert 0 < there < len(whole) == 72 and chosen(rows) == chosen(whole)
