"""Judges by an endpoint: what they are named by, their verdicts on pairs, and grades as rewards."""

import pytest

from dera_jax.rewards.completions import Completions
from dera_jax.rewards.judges import ModelJudge, Verdict, grade_reward, parse_judge
from dera_jax.rewards.questions import GRADES
from tests.support.judge_calls import failure
from tests.support.stub_judge import asked, fails, says, shown


def pair(prompt, a, b):
    rows = [{"prompt_id": prompt, "sample": 0, "prompt": f"prompt {prompt}", "completion": x} for x in (a, b)]
    return tuple(rows)


# Their names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("http://host/v1", "expected URL,model"),
        ("http://user:secret@host/v1,m", "without user, password"),
        ("http://host/v1?key=secret,m", "without user, password"),
        ("http://,m", "expected a URL"),
        ("http://host:port/v1,m", "expected a URL"),
        ("gpt-4", r"expected URL,model or a reward; unknown reward 'gpt-4'"),
        ("length:1:2,slots", "expected one reward, found 2"),
    ],
)
def test_judges_that_are_none(tmp_path, spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_judge(spec, **({"cache": tmp_path} if "," in spec and "http" in spec else {}))
    assert "secret" not in str(caught.value)


def test_the_base_may_be_written_with_what_is_added_to_it(tmp_path):
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        judge = parse_judge(f"{url},org/name", cache=tmp_path)
        assert (judge.endpoint.url, judge.endpoint.model) == ("http://h/v1", "org/name")


# Comparing

PAIRS = [pair(n, f"a{n}" + "x" * (n * 7 % 5), f"b{n}" + "x" * (n * 3 % 5)) for n in range(300)]


def longer(body):
    a, b = map(len, shown(body))
    return says(f"[[{'A' if a > b else 'B' if b > a else 'tie'}]]")


def by_hand(pairs):
    lengths = [(len(a["completion"]), len(b["completion"])) for a, b in pairs]
    return [1.0 if a > b else 0.0 if b > a else 0.5 for a, b in lengths]


def test_verdicts_are_of_a_whatever_was_shown_first(stub, endpoint):
    stub.reply = longer
    for both_orders in (False, True):
        found = ModelJudge(endpoint(), both_orders=both_orders)(PAIRS)
        assert [v.win for v in found] == by_hand(PAIRS)
    assert len(stub.bodies) == 600
    swapped = sum(shown(body)[0].startswith("b") for body in stub.bodies[:300])
    assert 120 < swapped < 180  # five standard deviations are 43


def test_b_against_a_is_the_same_question(stub, endpoint):
    stub.reply = longer
    wins = [v.win for v in ModelJudge(endpoint())(PAIRS)]
    assert [v.win for v in ModelJudge(endpoint())([(b, a) for a, b in PAIRS])] == [1 - win for win in wins]
    assert len(stub.bodies) == 300


def test_the_order_belongs_to_the_pair_and_the_seed(stub, endpoint, tmp_path):
    def order(seed, name, pairs):
        judge = ModelJudge(endpoint(cache=tmp_path / name), seed=seed)
        return [verdict.win for verdict in judge(pairs)]  # the first always wins

    first = order(0, "a", PAIRS[:40])
    assert order(0, "b", PAIRS[20:40]) == first[20:] and order(0, "c", PAIRS[39::-1]) == first[::-1]
    assert order(1, "d", PAIRS[:40]) != first


def test_a_judge_that_always_takes_the_first_wins_half_and_in_both_orders_ties(stub, endpoint):
    found = ModelJudge(endpoint())(PAIRS)
    assert abs(sum(v.win for v in found) / 300 - 0.5) < 0.145  # five standard deviations
    assert {v.win for v in found} == {0.0, 1.0} and {v.first for v in found} == {1.0}
    assert set(ModelJudge(endpoint(), both_orders=True)(PAIRS)) == {Verdict(0.5, 0.5 + 0.5)}
    assert len(stub.bodies) == 600  # half of them were on disk


def test_equal_completions_tie_unasked(stub, endpoint):
    assert ModelJudge(endpoint())([pair(0, "x", "x"), pair(1, "x", "y")])[0] == Verdict(0.5)
    assert len(stub.bodies) == 1


def test_answers_without_a_verdict_are_no_wins_and_too_many_end_it_early(stub, endpoint):
    odd = {asked(b): n % 10 == 0 for n, b in enumerate(_asked_of(stub, endpoint, PAIRS[:100]))}
    stub.reply = lambda body: says("I cannot say" if odd[asked(body)] else "[[A]]")
    judge = ModelJudge(endpoint(cache=endpoint().cache / "b"))
    assert [v.win for v in judge(PAIRS[:100])].count(None) == 10
    stub.reply, stub.bodies = lambda body: says("Hm?"), []
    message = failure(
        lambda: ModelJudge(endpoint(cache=endpoint().cache / "c"), max_failures=0.2)(PAIRS[:100])
    )
    assert "more than 20 of 100 answers have no verdict (--max-failures=0.2), the first: 'Hm?'" in message
    assert len(stub.bodies) < 40  # not all hundred are paid for


def _asked_of(stub, endpoint, pairs):
    ModelJudge(endpoint())(pairs)
    return list(stub.bodies)


def test_unreadable_answers_are_kept_and_asked_again_only_when_told_to(stub, endpoint):
    stub.reply = lambda body: says(None)
    lenient = {"max_failures": 1.0}
    assert ModelJudge(endpoint(), **lenient)(PAIRS[:5]) == [Verdict(None)] * 5
    stub.reply = lambda body: says("[[tie]]")
    assert ModelJudge(endpoint(), **lenient)(PAIRS[:5]) == [Verdict(None)] * 5
    assert ModelJudge(endpoint(), ask_again=True)(PAIRS[:5]) == [Verdict(0.5, 0.5)] * 5
    assert len(stub.bodies) == 10


def test_a_refused_request_is_a_failure_of_that_pair_and_is_not_kept(stub, endpoint):
    stub.reply = lambda body: fails(400, "too long") if "prompt 7" in asked(body) else says("[[A]]")
    found = ModelJudge(endpoint())(PAIRS[:20])
    assert [number for number, v in enumerate(found) if v.win is None] == [7]
    assert "the first: 400 Bad Request: too long" in failure(
        lambda: ModelJudge(endpoint(), max_failures=0.0)(PAIRS[:20])
    )
    assert len(stub.bodies) == 21


# Grading


@pytest.mark.parametrize(
    ("question", "said", "value"), [("hallucination", "Yes", 1.0), ("mt-bench", "[[3]]", 3.0)]
)
def test_grades_are_rewards(stub, endpoint, question, said, value):
    stub.reply = lambda body: says("?" if "nonsense" in asked(body) else said)
    texts = [*(f"text {n}" for n in range(11)), "nonsense"]
    completions = Completions(
        prompts=["p"] * 12, completions=texts, tokens=[[1]] * 12, finish_reasons=["eos"] * 12, decode=str
    )
    reward = grade_reward(endpoint(), question)
    assert reward.name == question in GRADES
    assert reward(completions) == [value] * 11 + [None]
    assert len(stub.bodies) == 12
    grade_reward(endpoint(), question)(completions)
    assert len(stub.bodies) == 12
