"""Judges that mean ill, or are broken: answers without an end, the key said again, escapes, odd shapes."""

import base64
import gzip
import itertools
import json
import time
from urllib.parse import quote

import pytest

from dera_jax.commands import compare, score
from dera_jax.common.redaction import redactor
from dera_jax.rewards.bounded_http import LARGEST
from dera_jax.rewards.endpoint import Endpoint
from dera_jax.rewards.judges import ask
from tests.support.stub_judge import fails, says, serve, serve_bytes

KEY = "sk-SECRET/0123+456=789"
QUESTION = [{"role": "user", "content": "Which?"}]
HEAD = b"HTTP/1.1 200 OK\r\n"
FINE = says("[[A]]")[2]
DRIPS = 400
"""Bytes that a slow server sends, one each 50th of a second."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judged(url, cache, **settings):
    """Returns what the judge at a URL says, or the line that it fails with."""
    endpoint = Endpoint(url, "m", cache=cache, **{"retries": 0, "backoff": 0.0, **settings})
    try:
        return ask(endpoint, [QUESTION], {"[[A]]": 1.0}.get, 0.0)[0]
    except ValueError as error:
        return str(error)


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


# The key, and what a terminal would obey


FORMS = {
    "itself": KEY,
    "upper": KEY.upper(),
    "broken": "\r\n ".join(KEY),
    "url": quote(KEY, safe=""),
    "url, small": quote(KEY, safe="").lower(),
    "percent": "".join(f"%{ord(each):02X}" for each in KEY),
    "json": json.dumps(KEY).replace("/", "\\/"),
    "unicode": "".join(f"\\u{ord(each):04X}" for each in KEY),
    "html": "".join(f"&#{ord(each)};" for each in KEY),
    "hex": KEY.encode().hex(),
    **{f"base64, {n}": base64.b64encode(b"Bearer "[n:] + KEY.encode()).decode() for n in range(3)},
    "base64, url": base64.urlsafe_b64encode(KEY.encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_taken_out_in_every_form(form):
    found = redactor(KEY)(f"before {FORMS[form]} after")
    assert found.startswith("before") and found.endswith("after") and "…" in found
    assert len(found) < len("before  after") + 14  # of Base64, the letters that are not the key's alone


def test_other_texts_are_left_as_they_are():
    for text in ("[[A]] is better than [[B]]", KEY[:-1], KEY[1:], "s k", ""):
        assert redactor(KEY)(text) == text
    assert redactor("")("any") == redactor("x")("any") == "any"
    assert redactor("EMPTY")("EMPTY") == "EMPTY"  # what local servers are given is no secret


def test_the_key_is_taken_out_of_long_texts():
    for text in (KEY[:9] * 10**5, "s" + " " * 10**6, "s \n" * 10**5, KEY * 10**4):
        assert KEY not in redactor(KEY)(text)


def hostile(told):
    """Returns whether a text has the key, or what a terminal obeys."""
    return any(each.lower() in told.lower() for each in FORMS.values()) or any(
        letter in told for letter in "\x1b\x07\x9b\u202e"
    )


@pytest.mark.parametrize("form", ["itself", "upper", "url", "base64, 0", "percent"])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 429, 500])
def test_servers_may_say_the_key_and_nobody_else_does(tmp_path, capfd, form, status):
    said = f"\x1b]0;pwned\x07{FORMS[form]}\x1b[2J\u202e"
    reason = said.encode("latin-1", "replace").replace(b"\n", b"")
    for body in (
        json.dumps({"error": {"message": said}}),
        json.dumps({"error": said}),
        said,
        f"{'x' * 190}{said}",
    ):
        data = body.encode()
        head = b"HTTP/1.1 %d %s\r\nX: %s\r\nContent-Length: %d\r\n\r\n" % (status, reason, reason, len(data))
        with serve_bytes(lambda head=head, data=data: [head, data]) as wire:
            told = judged(wire.url, tmp_path, retries=1)
        assert "error" not in told[:20] and not hostile(told) and "\n" not in told, told
    err = capfd.readouterr().err.replace("\x1b[A", "")  # of the progress bar
    assert not hostile(err)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("line", [f"{KEY} \x1b[2J", f"HTTP/1.1 {KEY} x", f"HTTP/1.1 200 OK\r\n{KEY}\x1b[2J"])
def test_what_is_no_answer_may_say_it_too(tmp_path, capfd, line):
    with serve_bytes(lambda: [line.encode() + b"\r\n\r\n"]) as wire:
        told = judged(wire.url, tmp_path)
    assert "(1 try)" in told and not hostile(told + capfd.readouterr().err)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_says_the_key_is_kept_without_it(tmp_path, form):
    text = f"{FORMS[form]} [[A]]"
    for content in (text, [{"text": text[:9]}, {"text": text[9:]}]):
        with serve() as stub:
            stub.reply = lambda body, content=content: says(content)
            told = judged(stub.url, tmp_path / "cache")
            assert "more than 0 of 1 answers have no verdict" in told and not hostile(told)
        (path,) = (path for path in (tmp_path / "cache").rglob("*.json"))
        assert not hostile(path.read_text()) and "[[A]]" in path.read_text()
        path.unlink()


def test_what_was_kept_before_is_shown_without_it(tmp_path):
    with serve() as stub:
        judged(stub.url, tmp_path)
        (path,) = tmp_path.rglob("*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"answer": KEY}))
        assert "have no verdict" in (told := judged(stub.url, tmp_path)) and not hostile(told)


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


# Whose key goes where


@pytest.mark.parametrize("name", [KEY, "sk-proj-abc", "a b", "1A", "é", "A=B"])
def test_a_key_in_the_place_of_its_variable_is_not_shown(tmp_path, name, capsys):
    for command, words in ((compare, ["a", "b"]), (score, ["a", "--question=mt-bench"])):
        run = tmp_path / "a"
        run.mkdir(exist_ok=True)
        (run / "manifest.json").write_text('{"format": 1, "identity": {}}')
        words = [str(tmp_path / word) if len(word) == 1 else word for word in words]
        assert command.main([*words, "--judge=http://localhost:9/v1,m", f"--judge-key-env={name}"]) == 2
        told = capsys.readouterr()
        assert told.err.count("\n") == 1 and "expected the name of an environment variable" in told.err
        assert name not in told.err + told.out


@pytest.mark.parametrize("name", ["gsk_abcDEF0123456789", "hf_secretsecret", "A" * 64])
def test_nor_one_that_could_be_a_name(tmp_path, name):
    with pytest.raises(ValueError, match="the environment variable, for the judge's key") as caught:
        Endpoint("http://localhost/v1", "m", cache=tmp_path, key_env=name)
    assert name not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://api.example.org/v1", True), ("http://localhost:8000/v1", True), ("http://127.0.0.1/v1", True),
        ("http://127.9.9.9/v1", True), ("http://[::1]:80/v1", True), ("http://judge.localhost/v1", True),
        ("http://api.example.org/v1", False), ("http://192.168.0.2/v1", False), ("http://localhost.evil.org/v1", False),
        ("http://0.0.0.0/v1", False), ("http://[::2]/v1", False), ("http://2130706433/v1", False),
    ],
)  # fmt: skip
def test_the_usual_key_goes_over_no_open_line(tmp_path, monkeypatch, url, private):
    if private:
        assert Endpoint(url, "m", cache=tmp_path).key == KEY
    else:
        with pytest.raises(ValueError, match="not encrypted, and OPENAI_API_KEY is set") as caught:
            Endpoint(url, "m", cache=tmp_path)
        assert KEY not in str(caught.value)
    assert Endpoint(url, "m", cache=tmp_path, key_env="OPENAI_API_KEY").key == KEY
    monkeypatch.delenv("OPENAI_API_KEY")
    assert Endpoint(url, "m", cache=tmp_path).key == ""
