"""Filling slots of a running batch: what is written, and that nothing else is copied."""

import jax
import numpy as np
import pytest

from dera_jax import load_policies
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request, shape_of
from dera_jax.decoding.state import Entries, fill_slots
from dera_jax.rules.rule import linear_rule

ROWS = 32


@pytest.fixture(scope="module")
def batch():
    policies, config = load_policies(), DecodeConfig(max_new_tokens=200)
    (prompt,) = encode_prompts(policies, as_prompts(["Mira visits Ida."]), 200)
    request = Request(prompt, 0, (0.5,))
    batch = Batch(policies, shape_of(request), config, ROWS)
    batch.submit([request])
    batch.fill()
    return batch


def entries(*slots):
    """Returns what a prompt is put into these slots with."""
    numbers = np.full(ROWS, ROWS, np.int32)
    numbers[: len(slots)] = slots
    weights = np.tile(np.float32([0.25, 0.75]), (ROWS, 1))
    seeds = np.tile(jax.random.key_data(jax.random.key(3)), (ROWS, 1))
    samples = np.arange(ROWS, dtype=np.uint32)
    return Entries(numbers, weights, seeds, np.uint32(5), samples, np.zeros(ROWS, np.uint32))


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_only_the_slots_named_are_filled_and_with_the_prompt(batch):
    prefilled, number = batch.prefill(batch.slots[0].request.prompt)
    state = jax.tree.map(lambda a: a.copy(), batch.state)
    state = state._replace(
        caches=jax.tree.map(lambda a: a + np.asarray(1, a.dtype), state.caches), done=np.ones(ROWS, bool)
    )
    before = arrays(state.caches)
    after = fill_slots(state, prefilled, number, entries(30, 2, 7), rule=linear_rule)
    for old, new, put in zip(before, arrays(after.caches), arrays(prefilled.caches), strict=True):
        others = np.setdiff1d(np.arange(ROWS), [30, 2, 7])
        assert np.array_equal(new[others], old[others])
        expected = np.zeros_like(new[0])
        expected[tuple(map(slice, put.shape[1:]))] = put[0]
        for slot in (30, 2, 7):
            assert np.array_equal(new[slot], expected)
    filled = np.flatnonzero(~np.asarray(after.done))
    assert filled.tolist() == [2, 7, 30]


def test_filling_one_slot_copies_no_other(batch):
    prompt = batch.prefill(batch.slots[0].request.prompt)
    compiled = fill_slots.lower(batch.state, *prompt, entries(3), rule=linear_rule).compile()
    caches = sum(a.nbytes for a in jax.tree.leaves(batch.state.caches))
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * caches / ROWS
