"""How many completions are decoded at a time: what is asked for, else no more than there are to make."""

from dataclasses import replace

import pytest

from dera_jax import generate, load_policies, sweep
from dera_jax.decoding.config import rows_of


class Nothing:
    """Decodes nothing, the loop is told in tests of its own, and keeps the rows of its batches."""

    def __init__(self):
        self.rows = []

    def __call__(self, policies, requests, config, rows, rule, usage):
        self.rows.append(rows)
        return iter(())


def test_batches_have_the_rows_that_there_are_to_make_or_those_asked_for():
    policies, draw = load_policies(), Nothing()
    generate(policies, ["Mira visits Ida."], draw=draw)
    generate(policies, ["Mira", "Ida", "Tom"], num_samples=20, draw=draw)
    generate(policies, ["Mira", "Ida", "Tom"], rows="auto", draw=draw)
    generate(policies, ["Mira"], rows=5, draw=draw)
    list(sweep(policies, ["Mira", "Ida"], [0, 0.5, 1], draw=draw))
    list(sweep(policies, ["Mira", "Ida"], [0, 0.5, 1], rows=2, draw=draw))
    assert draw.rows == [1, 32, 3, 5, 6, 2]


def test_the_turns_of_a_conversation_share_a_row():
    draw = Nothing()
    raw = [replace(policy, template="") for policy in load_policies()]
    list(sweep(raw, [{"turns": ["Mira", "Ida", "Tom"]}], [0, 1], draw=draw))
    # Two conversations, turn by turn.
    assert set(draw.rows) == {2}


@pytest.mark.parametrize("rows", [0, -1, "many"])
def test_rows_that_cannot_be_are_refused(rows):
    with pytest.raises(ValueError, match="rows: expected"):
        rows_of(rows, 4)
