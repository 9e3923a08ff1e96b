"""Judges behind a URL: a server on this machine that answers, fails and stalls as servers do."""

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dera_jax.rewards.completions import Completions
from dera_jax.rewards.endpoint import Endpoint
from dera_jax.rewards.judges import ModelJudge, Verdict, grade_reward, parse_judge
from dera_jax.rewards.questions import (
    COMPARISONS,
    GRADES,
    compare_messages,
    grade_messages,
    read_preference,
    read_rating,
    read_yes_no,
)
from tests.support.stub_judge import asked, fails, says, serve, shown

KEY = "sk-very-secret"


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve() as server:
        yield server


@pytest.fixture
def endpoint(stub, tmp_path):
    """Settings to an endpoint at the stub that does not wait before it tries again."""

    def made(**settings):
        return Endpoint(stub.url, "m", **{"backoff": 0.0, "cache": tmp_path / "cache", **settings})

    return made


def questions(count):
    return [[{"role": "user", "content": f"question {n}"}] for n in range(count)]


def answers(endpoint, asked):
    return {number: answer.text for number, answer in endpoint.answers(asked)}


def pair(prompt, a, b):
    rows = [{"prompt_id": prompt, "sample": 0, "prompt": f"prompt {prompt}", "completion": x} for x in (a, b)]
    return tuple(rows)


def failure(call):
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    return str(caught.value)


# What is asked and how answers are read


@pytest.mark.parametrize("question", COMPARISONS)
def test_a_comparison_shows_the_prompt_once_and_both_completions_in_order(question):
    (message,) = compare_messages(question, ("the prompt", "one completion"), ("the prompt", "another"))
    assert message["role"] == "user" and message["content"].count("the prompt") == 1
    assert message["content"].index("one completion") < message["content"].index("another")
    assert read_preference(message["content"]) is None  # who repeats the question has said nothing


def test_chats_are_shown_whole_and_the_start_of_an_answer_is_part_of_it():
    before = [{"role": "user", "content": "Hi"}]
    first = [*before, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]
    second = [*before, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Why?"}]
    (message,) = compare_messages("chat", (first, "because"), (second, "so"))
    for text in ("[user] Hi\n\n[assistant] Hello.\n\n[user] Why?", "[assistant] Hm.", "because", "so"):
        assert text in message["content"]
    started = [*before, {"role": "assistant", "content": "Good "}]
    (message,) = grade_messages("mt-bench", started, "day!")
    assert "<answer>\nGood day!\n</answer>" in message["content"] and "[assistant]" not in message["content"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A says more.\n[[A]]", 1), ("[[b]]", 0), ("[[ tie ]]", 0.5), ("[[C]]", 0.5), ("A", 1), ("**B**.", 0),
        ("<think>[[A]]?</think> [[B]]", 0), ("<think>Surely [[A]]", None), ("[[A]] but also [[B]]", None),
        ("A is better", None), ("", None), ("[[D]]", None), ("[[A]] yes, [[A]]", 1),
    ],
)  # fmt: skip
def test_preferences_are_read_where_there_is_exactly_one(answer, expected):
    assert read_preference(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", 1), ("no.", 0), ("**Yes**, it adds a price.", 1), ("Nothing", None), ("[[no]]", 0), ("", None)],
)
def test_yes_and_no(answer, expected):
    assert read_yes_no(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Rating: [[7]]", 7), ("[[7.5]]", 7.5), ("[[8/10]]", 8), ("[[0]]", None), ("[[n]]", None),
     ("[[3]] or [[4]]", None), ("8", None), ("[[10]]", 10), ("[[100]]", None)],
)  # fmt: skip
def test_ratings_are_from_1_to_10(answer, expected):
    assert read_rating(answer) == expected


def test_the_question_about_additions_has_examples_of_both_kinds():
    (message,) = grade_messages("hallucination", "name[Aromi]", "Aromi is cheap.")
    text = message["content"]
    assert (text.count("Additional: yes"), text.count("Additional: no")) == (3, 3)
    assert text.endswith("<rewrite>\nAromi is cheap.\n</rewrite>\nAdditional:")


# The endpoint


def test_a_request_is_what_openai_takes_and_the_key_is_nowhere_else(stub, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    made = endpoint(key_env="JUDGE_KEY", temperature=0.5, max_new_tokens=None)
    assert answers(made, questions(1)) == {0: "[[A]]"}
    assert stub.bodies == [{"model": "m", "messages": questions(1)[0], "temperature": 0.5}]
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == 1 and "question 0" in kept[0] and KEY not in kept[0] + repr(made)


def test_without_a_key_none_is_sent(stub, endpoint):
    answers(endpoint(), questions(1))
    assert "Authorization" not in stub.headers[0]


def test_as_many_requests_as_asked_for_are_under_way_at_a_time(stub, endpoint):
    together = threading.Barrier(4, timeout=10)

    def reply(body):
        together.wait()  # for ever, were there fewer
        return says("[[A]]")

    stub.reply = reply
    assert len(answers(endpoint(concurrency=4), questions(12))) == 12
    assert stub.most == 4


def test_what_was_answered_is_not_asked_again_unless_something_differs(stub, endpoint, tmp_path):
    first = answers(endpoint(), questions(5))
    assert answers(endpoint(), questions(7)) == {**first, 5: "[[A]]", 6: "[[A]]"}
    assert len(stub.bodies) == 7
    for change in ({"temperature": 1.0}, {"max_new_tokens": 5}, {"cache": tmp_path / "other"}):
        answers(endpoint(**change), questions(1))
    answers(Endpoint(stub.url, "n", cache=tmp_path / "cache"), questions(1))
    assert len(stub.bodies) == 11


def test_equal_requests_are_asked_once_and_all_answered(stub, endpoint):
    assert answers(endpoint(), questions(3) * 4) == dict.fromkeys(range(12), "[[A]]")
    assert len(stub.bodies) == 3


def test_failures_that_may_pass_are_tried_again(stub, endpoint):
    failing = [
        fails(429),
        fails(500),
        fails(503),
        (200, {}, b'{"error": "overloaded"}'),
        ConnectionAbortedError(),
    ]

    def reply(body):
        if not failing:
            return says("[[B]]")
        if isinstance(failing[-1], Exception):
            raise failing.pop()
        return failing.pop()

    stub.reply = reply
    assert answers(endpoint(), questions(1)) == {0: "[[B]]"}
    assert len(stub.bodies) == 6


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for_by_all(stub, endpoint, as_date):
    start, times, lock = time.monotonic(), [], threading.Lock()
    # A date has whole seconds.
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if as_date else "1"

    def reply(body):
        with lock:
            times.append(time.monotonic() - start)
            return fails(429, headers={"Retry-After": after}) if len(times) == 1 else says("[[A]]")

    stub.reply = reply
    assert len(answers(endpoint(concurrency=1, retries=1), questions(3))) == 3
    assert len(times) == 4 and times[1] >= 0.95


def test_a_rate_limit_that_lets_others_through_does_not_end_the_run(stub, endpoint):
    """One request in three passes: in some of sixty, nine tries in a row are refused."""
    lock, count = threading.Lock(), [0]

    def reply(body):
        with lock:
            count[0] += 1
            return says("[[A]]") if count[0] % 3 == 0 else fails(429)

    stub.reply = reply
    assert len(answers(endpoint(concurrency=8, retries=8), questions(60))) == 60


def test_when_failures_go_on_it_ends_with_one_line_and_keeps_what_was_answered(stub, endpoint):
    broken = [True]
    stub.reply = lambda body: (
        fails(500, "out of order") if broken and asked(body) == "question 3" else says("[[A]]")
    )
    message = failure(lambda: answers(endpoint(retries=2, concurrency=1), questions(6)))
    assert "500 Internal Server Error: out of order (3 tries); finished judgements are kept in" in message
    before = len(stub.bodies)
    broken.clear()
    assert len(answers(endpoint(), questions(6))) == 6
    assert len(stub.bodies) - before == 3  # questions 3, 4 and 5


def test_who_stops_reading_keeps_what_is_under_way(stub, endpoint):
    found = endpoint(concurrency=2).answers(questions(20))
    next(found)
    found.close()
    done = len(stub.bodies)
    assert done < 20
    answers(endpoint(), questions(20))
    assert len(stub.bodies) == 20


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (fails(401, f"wrong key {KEY}"), "401 Unauthorized: wrong key … (the key in OPENAI_API_KEY);"),
        (fails(404, "no model m"), "404 Not Found: no model m (expected the URL's base"),
        ((302, {"Location": "http://elsewhere"}, b""), "302 Found: (empty);"),
        (
            fails(429, headers={"Retry-After": "3600"}),
            "429 Too Many Requests: it is; it asks to be left alone for 3600 s;",
        ),
        (
            (200, {}, b"<html>\n<p>Welcome!"),
            "answered with no chat completion: <html> <p>Welcome! (6 tries);",
        ),
    ],
)
def test_failures_that_do_not_pass_are_said_in_one_line(stub, endpoint, monkeypatch, reply, expected):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.reply = lambda body: reply
    message = failure(lambda: answers(endpoint(concurrency=1), questions(3)))
    assert message.startswith(f"judge {stub.url},m: {expected}")
    assert len(stub.bodies) == (6 if "tries" in expected else 1)


def test_a_slow_judge_is_said_to_be_slow(stub, endpoint):
    stub.reply = lambda body: time.sleep(0.4) or says("[[A]]")
    message = failure(lambda: answers(endpoint(timeout=0.05, retries=0), questions(2)))
    assert "no answer within 0.05 s (--timeout) (1 try)" in message


def test_a_judge_that_is_down_is_said_to_be_down(tmp_path):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        made = Endpoint(url, "m", retries=1, backoff=0.0, cache=tmp_path)
        assert "cannot be reached: [Errno 111] Connection refused (2 tries)" in failure(
            lambda: answers(made, questions(2))
        )


def test_a_broken_answer_on_disk_is_named(endpoint, tmp_path):
    answers(endpoint(), questions(1))
    (path,) = tmp_path.rglob("*.json")
    path.write_text("{}")
    assert f"{path}: expected a judge's answer" in failure(lambda: answers(endpoint(), questions(1)))


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


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 0}, {"timeout": 0.0}, {"retries": -1}, {"temperature": -1.0}, {"key_env": "UNSET_KEY"}],
)
def test_settings_out_of_range(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings)) if "key_env" not in settings else "UNSET_KEY"):
        Endpoint("http://host/v1", "m", cache=tmp_path, **settings)


def test_a_key_that_no_header_takes_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nsk-other")
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Endpoint("http://host/v1", "m", cache=tmp_path)
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
