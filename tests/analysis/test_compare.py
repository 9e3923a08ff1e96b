"""Win rates of runs: counted by hand on made rows, and which completions belong together."""

import random

import pytest

from dera_jax.analysis.compare import compare, match
from dera_jax.analysis.estimates import estimate
from dera_jax.rewards.endpoint import Endpoint
from dera_jax.rewards.judges import ModelJudge
from dera_jax.rewards.registry import Reward, parse_rewards
from tests.support.rows import LAMBDAS, make_rows


def words(completions):
    return [None if text == "milk" else float(len(text.split())) for text in completions.completions]


WORDS = Reward("python:words", words)


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


def test_always_the_first_in_both_orders_is_all_ties_in_the_library_too(stub, tmp_path):
    judge = ModelJudge(Endpoint(stub.url, "m", cache=tmp_path), both_orders=True)
    for each in compare(make_rows(1), make_rows(2), judge):
        assert each.ties == each.n == 36 and each.win_rate.mean == 0.5
        assert each.first == 1 and each.win_rate.half_width == 0
