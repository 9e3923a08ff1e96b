"""Judges that mean ill, or are broken: answers without an end, odd shapes, when to come again."""

import gzip
import itertools
import json
import time

import pytest

from dera_jax.rewards.bounded_http import LARGEST
from dera_jax.rewards.endpoint import Endpoint
from dera_jax.rewards.judges import ask
from tests.support.judged import (
    environment,  # noqa: F401 (pytest looks for it here)
    judged,
)
from tests.support.stub_judge import fails, says, serve, serve_bytes

HEAD = b"HTTP/1.1 200 OK\r\n"
FINE = says("[[A]]")[2]
DRIPS = 400
"""Bytes that a slow server sends, one each 50th of a second."""


def dripping(start, text=b"x"):
    yield start
    for letter in itertools.islice(itertools.cycle(text), DRIPS):
        time.sleep(0.02)
        yield bytes([letter])


# Answers without an end


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (HEAD + b"Content-Length: 9999\r\n\r\n", b"x"),
        (HEAD + b"Connection: close\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
        (HEAD + b"X: ", b"x"),
        (HEAD, b"A: b\r\n"),
        (b"HTTP/1.1 200 ", b"O"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 500 Broken\r\nContent-Length: 9999\r\n\r\n", b"x"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 9999\r\n\r\n", b"x"),
    ],
)  # fmt: skip
def test_an_answer_has_its_time_as_a_whole(tmp_path, start, text):
    with serve_bytes(lambda: dripping(start, text)) as wire:
        told = judged(wire.url, tmp_path, timeout=0.3)
        assert "no answer within 0.3 s (--timeout) (1 try)" in told
    assert wire.requests == 1 and wire.sent < len(start) + DRIPS  # it was not waited for to the end


BLOCK = b"x" * 2**16


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Connection: close\r\n\r\n",
        HEAD + b"Content-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 500 Broken\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 429 Wait\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nConnection: close\r\n\r\n",
    ],
)
def test_an_answer_has_a_size(tmp_path, head):
    most = 64 * LARGEST // len(BLOCK)
    with serve_bytes(lambda: [head, *itertools.repeat(BLOCK, most)]) as wire:
        told = judged(wire.url, tmp_path, retries=5, timeout=30.0)
        assert "its answer is larger than 4 MiB; finished judgements" in told
    assert wire.requests == wire.left == 1 and wire.sent < len(BLOCK) * most


def test_an_answer_of_just_that_size_is_read(tmp_path):
    whole = says("[[A]]")[2].ljust(LARGEST)
    with serve() as stub:
        stub.reply = lambda body: (200, {}, whole)
        assert judged(stub.url, tmp_path, timeout=30.0) == 1.0


@pytest.mark.parametrize(
    "lines",
    [(b"X: " + BLOCK for _ in range(99)), (b"X%d: x\r\n" % n for n in range(1000)), [b"\x1b[2J\r\n"] * 9],
)
def test_heads_are_as_long_as_heads_are(tmp_path, capfd, lines):
    lines = list(lines)
    with serve_bytes(lambda: [HEAD, *lines, b"Content-Length: 2\r\n\r\n{}"]) as wire:
        told = judged(wire.url, tmp_path)
    assert "cannot be reached" in told and "\x1b" not in told + capfd.readouterr().err


def test_nothing_is_unpacked(tmp_path):
    """A few bytes would stand for many."""
    with serve() as stub:
        stub.reply = lambda body: (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10**6))
        assert "answered with no chat completion" in judged(stub.url, tmp_path)
        assert stub.headers[0]["Accept-Encoding"] == "identity"


def test_half_an_answer_is_none(tmp_path):
    with serve_bytes(lambda: [HEAD, b"Content-Length: 9999\r\n\r\n", FINE]) as wire:
        assert "(3 tries)" in judged(wire.url, tmp_path, retries=2)
    assert wire.requests == 3


def test_answers_in_any_pieces_are_read_and_the_connection_is_used_again(tmp_path):
    chunks = b"".join(b"%x\r\n%c\r\n" % (1, letter) for letter in FINE) + b"0\r\n\r\n"
    with serve_bytes(lambda: [HEAD, b"Transfer-Encoding: chunked\r\n\r\n", chunks]) as wire:
        assert judged(wire.url, tmp_path / "a") == 1.0
    with serve() as stub:
        asked = [[{"role": "user", "content": str(n)}] for n in range(9)]
        endpoint = Endpoint(stub.url, "m", cache=tmp_path / "b", concurrency=1)
        assert ask(endpoint, asked, {"[[A]]": 1.0}.get, 0.0) == [1.0] * 9
        assert len({id(each) for each in stub.headers}) == 9


# Odd shapes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "[["}, {"text": "A]]"}], 1.0),
        ([{"text": None}, {"text": 5}, None, 7, "x", [], {"image": {}}, {"text": "[[A]]"}], 1.0),
        ([], "have no verdict"), (None, "have no verdict"), (5, "no chat completion"), ({}, "no chat completion"),
        (True, "no chat completion"),
    ],
)  # fmt: skip
def test_contents_of_all_kinds(tmp_path, content, expected):
    with serve() as stub:
        stub.reply = lambda body: says(content)
        found = judged(stub.url, tmp_path)
    assert found == expected or expected in found


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**5, b'{"choices":' + b"[" * 10**5 + b"]" * 10**5 + b"}", b"null", b"[]", b"7", b"\xff", b"{}",
        b'{"choices": {}}', b'{"choices": []}', b'{"choices": [null]}', b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {}}]}', b'{"error": ' * 9999 + b"1" + b"}" * 9999, b"9" * 5000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 500])
def test_bodies_of_all_kinds(tmp_path, body, status):
    with serve() as stub:
        stub.reply = lambda _: (status, {}, body)
        told = judged(stub.url, tmp_path, retries=1)
    assert ("answered with no chat completion" in told) == (status == 200)
    assert "(2 tries)" in told and len(told) < 600


def test_what_a_model_cannot_write_is_no_reason_to_refuse_its_answer(tmp_path):
    """Log-probabilities of −∞, which is no JSON, come from servers in use."""
    with serve() as stub:
        stub.reply = lambda body: (200, {}, FINE[:-1] + b', "logprobs": [-Infinity, NaN]}')
        assert judged(stub.url, tmp_path) == 1.0


def test_an_answer_under_another_name_is_not_taken(tmp_path):
    with serve() as stub:
        judged(stub.url, tmp_path)
        (path,) = tmp_path.rglob("*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "n"}))
        assert f"{path}: holds the answer to another request" in judged(stub.url, tmp_path)


# When to come again


@pytest.mark.parametrize("after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "-5", "soon", "9" * 5000, "nan", ""])
def test_a_server_that_asks_for_no_patience_gets_it(tmp_path, after):
    times = []
    with serve() as stub:

        def reply(body):
            times.append(time.monotonic())
            return fails(429, headers={"Retry-After": after}) if len(times) < 4 else says("[[A]]")

        stub.reply = reply
        told = judged(stub.url, tmp_path, retries=3, backoff=0.1)
    if after == "9" * 5000:
        assert told == 1.0 or "it asks to be left alone" in told
    else:
        assert (
            told == 1.0 and times[3] - times[0] >= 0.7 * 0.75
        )  # 0.1 + 0.2 + 0.4, each less a quarter at most


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_statuses_that_may_pass(tmp_path, status):
    answers = [fails(status), fails(status), says("[[A]]")]
    with serve() as stub:
        stub.reply = lambda body: answers.pop(0)
        assert judged(stub.url, tmp_path, retries=2) == 1.0


def test_many_retries_are_no_overflow(tmp_path):
    with serve() as stub:
        stub.reply = lambda body: fails(503) if len(stub.bodies) < 1500 else says("[[A]]")
        assert judged(stub.url, tmp_path, retries=2000) == 1.0
