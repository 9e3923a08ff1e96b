"""`eval.generate --chat` without a prompt: a conversation that goes on, at strengths that change."""

import io
import re

import pytest

from dera_jax import generate as call
from dera_jax import load_policies
from dera_jax.commands import generate
from dera_jax.commands.parts import talking
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.decoding.streaming import stream
from tests.support.conversations import CHATML, chatting


@pytest.fixture
def talk(monkeypatch, tmp_path, capsys):
    template = tmp_path / "template.jinja"
    template.write_text(CHATML)

    def run(*lines, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        words = ["--chat", f"--chat-template={template}", "--max-new-tokens=12", "--seed=3", *options]
        code = generate.main(words)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def asked(policies, messages, strength, sample):
    """Returns the text of an answer by itself."""
    (prompt,) = encode_prompts(policies, as_prompts([{"messages": messages}]), 12)
    config = DecodeConfig(max_new_tokens=12, seed=3)
    return "".join(piece.text for piece in stream(policies, Request(prompt, sample, (strength,)), config))


def answers(out):
    return re.findall(r"(.*?)\n\[(λ = .*?)\]\n", out, re.DOTALL)


def test_answers_go_on_from_those_before(talk):
    code, out, _ = talk("Who is Tom?", "Why?", "/lambda 0", "And then?", "/reset", "Who is Tom?")
    told = answers(out)
    assert code == 0 and [note.partition(":")[0] for _, note in told] == ["λ = 1", "λ = 1", "λ = 0", "λ = 0"]
    policies = load_policies(chat_template=CHATML)
    messages = [{"role": "user", "content": "Who is Tom?"}]
    assert told[0][0] == asked(policies, messages, 1.0, 1)
    messages += [{"role": "assistant", "content": told[0][0]}, {"role": "user", "content": "Why?"}]
    assert told[1][0] == asked(policies, messages, 1.0, 3)
    # /reset: as at the beginning, but for the strength.
    assert told[3][0] == asked(policies, messages[:1], 0.0, 1)


def test_two_answers_and_the_first_goes_on(talk):
    _, out, _ = talk("/both 0 2", "Who is Tom?", "Why?")
    told = answers(out)
    assert [note.partition(":")[0] for _, note in told] == ["λ = 0", "λ = 2"] * 2
    first = [{"role": "user", "content": "Who is Tom?"}, {"role": "assistant", "content": told[0][0]}]
    policies = load_policies(chat_template=CHATML)
    assert told[3][0] == asked(policies, [*first, {"role": "user", "content": "Why?"}], 2.0, 3)


def test_a_line_that_is_wrong_ends_nothing(talk):
    lines = "/lambda high", "/lambda 0,1", "/both 1", "/strength 2", "Hi " * 400, "Who is Tom?"
    code, out, err = talk(*lines)
    assert code == 0 and len(answers(out)) == 1 and err.count("error: ") == 5 and "Traceback" not in err


@pytest.mark.parametrize(
    "options", [["--lambda=0,1,2"], ["--num-samples=2"], ["--draw=best-of:2:length:1:2"]]
)
def test_what_a_conversation_cannot_have(talk, options):
    code, _, err = talk("Hi", options=options)
    assert code == 2 and "a conversation: expected" in err


def test_ctrl_c_ends_an_answer_alone(capsys):
    def pieces(messages, strength):
        yield talking_piece("Tom")
        raise KeyboardInterrupt

    conversation = talking.Conversation(pieces, ((1.0,),), lambda text: ())
    conversation.take("Who?")
    assert "Tom\n[stopped, λ = 1: 1 tokens" in capsys.readouterr().out
    assert conversation.messages[-1] == {"role": "assistant", "content": "Tom"}


def talking_piece(text, kl=0.3):
    from dera_jax.decoding.streaming import Piece

    return Piece(text, kl)


def test_tokens_have_the_colour_of_their_kl(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    drawn = [talking_piece("a", 0.01), talking_piece("b\x1b[2J", 5.0)]
    talking.Conversation(lambda *_: iter(drawn), ((1.0,),), lambda text: ()).take("Who?")
    assert capsys.readouterr().out.startswith("a\x1b[48;5;208;38;5;16mb [2J\x1b[0m\n")


def test_pieces_are_the_completion():
    policies = chatting(load_policies())
    (expected,) = call(
        policies, [{"messages": [{"role": "user", "content": "Hi"}]}], 0.5, max_new_tokens=40, rows=1
    )
    *told, last = stream(policies, expected.request, DecodeConfig(max_new_tokens=40))
    assert "".join(piece.text for piece in [*told, last]) == expected.text == last.completion.text
    assert len(told) + 1 == len(expected.tokens) and last.completion.tokens == expected.tokens
    assert [piece.kl_to_reference for piece in [*told, last]] == expected.kl_to_reference.tolist()
