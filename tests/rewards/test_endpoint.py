"""An endpoint behind a URL: a server on this machine that answers, fails and stalls as servers do."""

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dera_jax.rewards.endpoint import Endpoint
from tests.support.judge_calls import KEY, failure
from tests.support.stub_judge import asked, fails, says


def questions(count):
    return [[{"role": "user", "content": f"question {n}"}] for n in range(count)]


def answers(endpoint, asked):
    return {number: answer.text for number, answer in endpoint.answers(asked)}


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
