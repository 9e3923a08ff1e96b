"""Text from outside is shown without what would command the terminal."""

from hypothesis import given
from hypothesis import strategies as st

from dera_jax.common.shown import shown


@given(st.text(), st.none() | st.integers(1, 20))
def test_whatever_is_shown_commands_nothing(text, width):
    told = shown(text, width)
    assert not {"\x1b", "\x9b", "\r", "\n", "\x07", "\u202e", "\u2028"} & set(told)
    if width and len(text) > width:
        assert "…" in told
    told.encode()


def test_text_that_commands_nothing_is_shown_as_it_is():
    text = "λ × naïve — 你好 👩‍👩‍👧 ½"
    assert shown(text) == text


def test_line_ends_of_a_completion_can_be_kept():
    assert shown("a\n\x1b[31mb", keep="\n") == "a\n\\x1b[31mb"
