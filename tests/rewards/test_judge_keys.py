"""The judge's key: taken out of what servers say, and sent over no open line."""

import base64
import json
from urllib.parse import quote

import pytest

from dera_jax.commands import compare, score
from dera_jax.common.redaction import redactor
from dera_jax.rewards.endpoint import Endpoint
from tests.support.judged import (
    KEY,
    environment,  # noqa: F401 (pytest looks for it here)
    judged,
)
from tests.support.stub_judge import says, serve, serve_bytes

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
