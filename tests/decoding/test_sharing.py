"""Strengths that share rows say what they say in rows of their own, to the bit, and cost what they do not share."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from dera_jax import load_policies
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import load_prompts
from dera_jax.decoding import branches, device_loop, shared_loop
from dera_jax.decoding.complete import complete, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request, shape_of
from dera_jax.decoding.shared_batch import SharedBatch
from dera_jax.devices.usage import Usage
from tests.support.figures import assert_bit_equal

pytestmark = pytest.mark.bits

CONFIG = DecodeConfig(max_new_tokens=64, seed=3)
STRENGTHS = [(round(0.2 * n, 1),) for n in range(11)]


@pytest.fixture(scope="module")
def toy():
    return load_policies()


def requests_of(policies, count=5, samples=2, strengths=STRENGTHS):
    prompts = encode_prompts(policies, load_prompts("toy", count), 64)
    return [Request(p, sample, s) for p in prompts for sample in range(samples) for s in strengths]


def by_key(completions):
    return {done.request.key: done for done in completions}


def check(policies, requests, config=CONFIG, rows=8, **more):
    """Compares all completions with those of unshared rows, and returns what both took."""
    used = Usage(), Usage()
    alone = by_key(complete_unshared(policies, requests, config, rows, usage=used[0], **more))
    shared = by_key(complete(policies, requests, config, rows, usage=used[1], **more))
    assert shared.keys() == alone.keys() == {request.key for request in requests}
    for key, done in shared.items():
        assert_bit_equal(done, alone[key])
    assert used[0].tokens == used[1].tokens == used[0].row_tokens
    return used


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
        {"stop": (".",)},
        {"max_new_tokens": 37},
        {"kv_cache": "int8"},
    ],
    ids=str,
)
def test_rows_are_those_of_unshared_rows(toy, settings):
    alone, shared = check(toy, requests_of(toy), replace(CONFIG, **settings))
    assert shared.shared > 0.3 and shared.slot_steps < 0.8 * alone.slot_steps


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_however_many_rows_there_are(toy, rows):
    check(toy, requests_of(toy, 2), rows=rows)


def test_more_strengths_than_a_row_has_lanes_for(toy):
    check(toy, requests_of(toy, 3, 1, [(0.05 * n,) for n in range(41)]), rows=3)


def test_a_window_that_has_come_round_is_read_anew(toy, monkeypatch):
    """Those that left a row begin again where it cannot be cut back, and are the same."""
    again, original = [], SharedBatch._start_again
    monkeypatch.setattr(
        SharedBatch, "_start_again", lambda self, branch: again.append(branch) or original(self, branch)
    )
    pair = tuple(replace(p, config=replace(p.config, windows=(24, 0, 40, 0))) for p in toy)
    check(pair, requests_of(pair, 3))
    assert again


def test_several_aligned_models_share_too(toy):
    three = (*toy, replace(toy[0], name="third"))
    check(three, requests_of(three, 3, 1, [(0.1 * n, 0.5 - 0.1 * n) for n in range(6)]))


def test_a_strength_of_each_prompt_and_a_few_of_others(toy):
    requests = requests_of(toy)
    check(toy, [request for number, request in enumerate(requests) if number % 3])


def test_the_order_of_requests_takes_nothing_from_what_is_shared(toy):
    requests = requests_of(toy, 3)
    _, together = check(toy, requests)
    _, mixed = check(toy, sorted(requests, key=lambda request: request.lambda_))
    assert mixed.row_tokens == together.row_tokens


def every_third(logits, weights, step):
    """The aligned model's word at every third step, the mixture's at the others."""
    mixed = jnp.einsum("mrv,rm->rv", logits, weights)
    return jnp.where((step % 3 == 0)[:, None], logits[1], mixed), step + 1


every_third.initial_state = lambda rows: jnp.zeros(rows, jnp.int32)


def by_row(logits, weights, state):
    """The mixture, sharper by a state whose first values count the rows."""
    return (1 + state[:, None]) * jnp.einsum("mrv,rm->rv", logits, weights), state


by_row.initial_state = lambda rows: 0.1 * jnp.arange(rows, dtype=jnp.float32)


def test_a_state_begins_alike_in_every_row(toy):
    """As the state of a single row does: completions do not depend on the row that they are given."""
    check(toy, requests_of(toy, 3, 1), rule=by_row)


def test_each_strength_has_the_state_of_its_rule(toy):
    _, used = check(toy, requests_of(toy, 3), rule=every_third)
    assert used.shared > 0.2


def test_nothing_is_computed_for_strengths_that_agree_throughout(toy):
    """One model beside itself: all strengths are one law, and one row serves them."""
    alike = (toy[0], toy[0])
    config, requests = replace(CONFIG, temperature=0.0), requests_of(toy, 4, 1)
    # A single row: where slots are idle, strengths take several.
    alone, shared = check(alike, requests, config, rows=1)
    assert shared.row_tokens * len(STRENGTHS) == alone.row_tokens


def test_the_number_of_strengths_is_not_compiled_for(toy):
    def compiled(count):
        strengths = [(2.0 * n / count,) for n in range(count)]
        jitted = (
            shared_loop.decode_shared_chunk,
            branches.cut_rows,
            branches.copy_rows,
            device_loop.decode_chunk,
        )
        before = [function._cache_size() for function in jitted]
        list(complete(toy, requests_of(toy, 4, 1, strengths), CONFIG, 7))
        return [function._cache_size() - had for function, had in zip(jitted, before, strict=True)]

    first = compiled(11)
    assert first[0] == 1 and max(first) == 1
    assert compiled(41) == compiled(13) == [0, 0, 0, 0]
    assert sum(compiled(1)) == 1


def test_memory_does_not_grow_with_the_number_of_strengths(toy, monkeypatch):
    """Lanes are mixed and measured in blocks of as many as there are rows."""
    held, original = [], shared_loop.decode_shared_chunk

    def measured(*args, **settings):
        memory = original.lower(*args, **settings).compile().memory_analysis()
        held.append(memory.temp_size_in_bytes + memory.argument_size_in_bytes)
        return original(*args, **settings)

    monkeypatch.setattr(shared_loop, "decode_shared_chunk", measured)
    for count in (2, 41):
        requests = requests_of(toy, 1, 1, [(2.0 * n / count,) for n in range(count)])
        batch = SharedBatch(toy, shape_of(requests[0]), CONFIG, 8, strengths=count)
        batch.submit(requests)
        list(batch.step())
    print(f"a chunk with 2 strengths holds {held[0]:,} bytes, with 41 {held[1]:,}")
    assert held[1] < 1.03 * held[0]


def test_what_is_cancelled_is_not_answered_and_the_others_are(toy):
    requests = requests_of(toy, 3, 1)
    expected = by_key(complete_unshared(toy, requests, CONFIG, 2))
    batch = SharedBatch(toy, shape_of(requests[0]), CONFIG, 2, strengths=11)
    batch.submit(requests)
    found = list(batch.step())
    ended = {done.request.key for done in found}
    gone = [request for request in requests if request.key not in ended][::4]
    assert all(batch.cancel(request) for request in gone) and not batch.cancel(gone[0])
    while batch.busy:
        found += batch.step()
    assert by_key(found).keys() == expected.keys() - {request.key for request in gone}
    for done in found:
        assert done.tokens == expected[done.request.key].tokens


def test_settings_of_ones_own_are_drawn_in_rows_of_their_own(toy):
    requests = requests_of(toy, 1, 1)
    own = [replace(requests[0], config=replace(CONFIG, temperature=0.5)), *requests[1:]]
    assert len(list(complete(toy, own, CONFIG, 4))) == len(own)
    batch = SharedBatch(toy, shape_of(own[0]), CONFIG, 2, strengths=11)
    with pytest.raises(ValueError, match="expected none with settings of its own"):
        batch.submit(own)


def test_a_model_without_numbers_is_told(toy):
    broken = replace(toy[1], params=toy[1].params | {"norm": {"scale": jnp.full(80, jnp.nan)}})
    with pytest.raises(ValueError, match="logits are not finite at token 1"):
        list(complete((toy[0], broken), requests_of(toy, 1, 1), CONFIG, 4))
