"""What a stream has told of a text stays: every beginning of the tokens has a beginning of the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dera_jax import load_policies
from dera_jax.data.tokens import text_ids
from dera_jax.decoding.endings import Endings

TEXTS = ["Once upon a time", "ünïcödé → 🙂🙃 end", "a\n\nb\n", "cat, dog, catcat", "\u2028x\ufffdy"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_policies()[1].tokenizer


def told(endings, prompt, ids, step):
    """Returns the pieces of a stream, as a server makes them, and the end."""
    text, pieces = "", []
    for count in [*range(step, len(ids), step), len(ids)]:
        if end := endings.find(prompt, ids[:count], max(0, count - step)):
            assert end.text.startswith(text)
            return [*pieces, end.text[len(text) :]], end
        settled = endings.settled(prompt, ids[:count])
        assert settled.startswith(text), "what was told is taken back"
        pieces.append(settled[len(text) :])
        text = settled
    raise AssertionError("no end")


@pytest.mark.parametrize("step", [1, 3, 16])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stop", [(), ("\n\n",), ("cat", "dog"), ("🙃",), ("time", "me x"), ("→ 🙂🙃 e",)])
def test_pieces_are_the_text(step, text, stop, tokenizer):
    prompt, ids = text_ids(tokenizer, "Lily"), text_ids(tokenizer, f" {text}", special=False)
    endings = Endings(tokenizer, (), stop, len(ids))
    pieces, end = told(endings, prompt, ids, step)
    assert "".join(pieces) == end.text
    # No piece holds half of what ends the text.
    assert not any(each in "".join(pieces) for each in stop)


STOPS = st.lists(st.text("ab, e.\n", min_size=1, max_size=3), max_size=3)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(3, 511), min_size=1, max_size=30), stop=STOPS)
def test_pieces_of_any_tokens_are_the_text(ids, stop):
    tokenizer = load_policies()[1].tokenizer
    pieces, end = told(Endings(tokenizer, (), tuple(stop), len(ids)), [5, 6], ids, 1)
    assert "".join(pieces) == end.text
