"""A batch that requests are put into and taken out of while it runs, each drawn as it says itself."""

import itertools
import operator
from dataclasses import replace

import numpy as np
import pytest

from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import Prompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request, shape_of

CONFIG = DecodeConfig(max_new_tokens=40, seed=3)
ROWS = 4


@pytest.fixture(scope="module")
def prompts(pair):
    texts = ["Mira visits Ida.", "Tom", "Ben bakes bread", "Lily and Ben"]
    return encode_prompts(pair, [Prompt(i, text) for i, text in enumerate(texts)], 40)


@pytest.fixture(scope="module")
def requests(prompts):
    return [Request(prompt, sample, (0.7,)) for prompt in prompts for sample in range(3)]


@pytest.fixture(scope="module")
def expected(pair, requests):
    return by_key(complete(pair, requests, CONFIG, ROWS))


def by_key(completions):
    return {done.request.key: done for done in completions}


def new_batch(pair, request, config=CONFIG):
    return Batch(pair, shape_of(request), config, ROWS)


def finished(batch):
    found = []
    while batch.busy:
        found += batch.step()
    return found


def test_requests_that_come_while_others_are_at_work_are_answered_alike(pair, requests, expected):
    batch = new_batch(pair, requests[0])
    found = []
    for request in requests[::-1]:
        batch.submit([request])
        found += batch.step()
    found += finished(batch)
    assert by_key(found).keys() == expected.keys() and len(found) == len(requests)
    for done in found:
        there = expected[done.request.key]
        assert (done.tokens, done.finish_reason) == (there.tokens, there.finish_reason)
        np.testing.assert_allclose(done.logprobs, there.logprobs, atol=1e-4)
    assert batch.usage.tokens == sum(len(done.tokens) for done in found)


def test_what_is_cancelled_is_not_answered_and_the_others_are(pair, requests, expected):
    batch = new_batch(pair, requests[0])
    batch.submit(requests)
    ended = by_key(batch.step())
    at_work = [slot.request for slot in batch.slots if slot is not None]
    assert batch.waiting == len(requests) - ROWS and at_work
    gone = [at_work[0], batch.queue[-1]]
    assert [batch.cancel(request) for request in gone] == [True, True]
    assert not batch.cancel(gone[0]) and not batch.cancel(replace(batch.queue[0]))
    rest = finished(batch)
    left = expected.keys() - {request.key for request in gone}
    assert (ended | by_key(rest)).keys() == left
    for done in rest:
        assert done.tokens == expected[done.request.key].tokens


def test_a_batch_without_requests_does_nothing(pair, requests):
    batch = new_batch(pair, requests[0])
    assert not batch.busy and list(batch.step()) == [] and batch.usage.slot_steps == 0


@pytest.mark.parametrize(
    "own",
    [
        {"temperature": 0.0},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.5, "temperature": 1.4},
        {"top_k": 20, "top_p": 0.9},
        {"seed": 2**40 + 5},
        {"stop": (".",)},
        {"max_new_tokens": 5},
        {"max_new_tokens": 90, "top_p": 0.05},
    ],
    ids=str,
)
def test_a_request_of_its_own_settings_is_drawn_as_a_batch_of_them(pair, requests, expected, own):
    """And its neighbours as without it."""
    config = replace(CONFIG, **own)
    there = by_key(complete(pair, requests[::4], config, ROWS))
    mixed = [replace(request, config=config) if request.key in there else request for request in requests]
    found = by_key(complete(pair, mixed, CONFIG, ROWS))
    for key, alone in there.items():
        done = found[key]
        assert (done.tokens, done.text, done.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
        np.testing.assert_allclose(done.sampling_logprobs, alone.sampling_logprobs, atol=1e-4)
    assert any(found[key].tokens != expected[key].tokens for key in there)
    for key in expected.keys() - there.keys():
        assert found[key].tokens == expected[key].tokens


def test_no_value_of_a_row_is_compiled_for(pair, prompts):
    settings = [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.3}, {"temperature": 0.0}, {"seed": 9}]
    asked = [
        Request(prompts[0], number, (0.7,), config=replace(CONFIG, **own))
        for number, own in enumerate(settings)
    ]
    list(complete(pair, asked[:1], CONFIG, 3))
    before = device_loop.decode_chunk._cache_size()
    list(complete(pair, asked, CONFIG, 3))
    assert device_loop.decode_chunk._cache_size() == before


def test_attempts_differ_in_noise_alone(pair, requests, expected):
    def tokens(number, config):
        attempts = [replace(request, attempt=number) for request in requests]
        made = by_key(complete(pair, attempts, config, ROWS))
        return [made[attempt.key].tokens for attempt in attempts]

    drawn = [tokens(number, CONFIG) for number in range(3)]
    assert drawn[0] == [expected[request.key].tokens for request in requests]
    for one, other in itertools.combinations(drawn, 2):
        assert sum(map(operator.eq, one, other)) <= 2
    greedy = replace(CONFIG, temperature=0.0)
    assert tokens(0, greedy) == tokens(1, greedy)


def test_what_the_batch_cannot_take_is_refused(pair, requests):
    batch = new_batch(pair, requests[0])
    other = replace(requests[0], config=replace(CONFIG, kv_cache="int8"))
    with pytest.raises(ValueError, match="expected kv_cache auto, got int8"):
        batch.submit([requests[0], other])
    assert not batch.busy
    encoder = Batch(pair, shape_of(requests[0])._replace(encoded=(16, 16)), CONFIG, ROWS)
    with pytest.raises(ValueError, match="request: expected one of Shape"):
        encoder.submit(requests[:1])
