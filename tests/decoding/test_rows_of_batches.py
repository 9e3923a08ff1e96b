"""How many completions are decoded at a time: what is asked for, else no more than there are to make."""

from dataclasses import replace

import pytest

from dera_jax import generate, load_policies, sweep
from dera_jax.decoding import conversation
from dera_jax.decoding.config import rows_of


@pytest.fixture
def rows_used(monkeypatch):
    used = []
    # Nothing is decoded: the loop is told in tests of its own.
    monkeypatch.setattr(
        conversation, "complete", lambda policies, cells, config, rows, *rest: used.append(rows) or iter(())
    )
    return used


def test_batches_have_the_rows_that_there_are_to_make_or_those_asked_for(rows_used):
    policies = load_policies()
    generate(policies, ["Mira visits Ida."])
    generate(policies, ["Mira", "Ida", "Tom"], num_samples=20)
    generate(policies, ["Mira", "Ida", "Tom"], rows="auto")
    generate(policies, ["Mira"], rows=5)
    list(sweep(policies, ["Mira", "Ida"], [0, 0.5, 1]))
    list(sweep(policies, ["Mira", "Ida"], [0, 0.5, 1], rows=2))
    assert rows_used == [1, 32, 3, 5, 6, 2]


def test_the_turns_of_a_conversation_share_a_row(rows_used):
    raw = [replace(policy, template="") for policy in load_policies()]
    list(sweep(raw, [{"turns": ["Mira", "Ida", "Tom"]}], [0, 1]))
    # Two conversations, turn by turn.
    assert set(rows_used) == {2}


@pytest.mark.parametrize("rows", [0, -1, "many"])
def test_rows_that_cannot_be_are_refused(rows):
    with pytest.raises(ValueError, match="rows: expected"):
        rows_of(rows, 4)
