"""Several tokens at once, different numbers of them in each row, against one at a time."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from tests.support import tiny_models

ROWS, PROMPT, ROOM = 3, 16, 14
ROUNDS = ((3, 1, 2), (1, 3, 3), (2, 3, 1))
"""Tokens that each row keeps of those read at once, three at a time."""
MOST = 9
LANGUAGE_MODELS = [name for name in tiny_models.configs() if not name.startswith("reward")]
WINDOWS = replace(
    tiny_models.SMALL, num_layers=3, windows=(5, 12, 0), num_heads=2, num_kv_heads=1, attention_softcap=2.0
)


def prefilled(model, config, tokens):
    """Returns the cache of left-padded prompts, with room for what is read next."""
    mask = jnp.arange(PROMPT) >= jnp.array([0, 5, 12])[:, None]
    cache = models.without_padding(model.prefill(tokens[:, :PROMPT], mask))
    return models.fit_cache(cache, PROMPT + 4 * ROOM, config.windows), mask.sum(axis=1)


@partial(jax.jit, static_argnames="config")
def one_at_a_time(config, params, tokens, fed):
    """Returns the logits after each of `fed`, then after one more behind those that were stored."""
    model = models.bind(config, params)
    cache, start = prefilled(model, config, tokens)

    def step(recent, each):
        token, number = each
        logits, recent = model.step(token, start + number, cache, recent)
        return recent, logits

    recent = models.no_recent(cache, fed.shape[1])
    _, logits = jax.lax.scan(step, recent, (fed.T, jnp.arange(fed.shape[1])))
    return logits.swapaxes(0, 1)


@partial(jax.jit, static_argnames="config")
def several_at_once(config, params, tokens, fed):
    """Returns the same, of rows that go on at a pace of their own; what they do not keep is another token."""
    model = models.bind(config, params)
    cache, start = prefilled(model, config, tokens)
    recent, taken = models.no_recent(cache, ROOM, by_row=True), jnp.zeros(ROWS, jnp.int32)
    found = jnp.zeros((ROWS, fed.shape[1], config.vocab_size))

    def read(cache, recent, taken, kept):
        places = taken[:, None] + jnp.arange(3)
        right = jnp.arange(3) < kept[:, None]
        some = jnp.where(right, jnp.take_along_axis(fed, jnp.minimum(places, fed.shape[1] - 1), axis=1), 7)
        logits, after = model.steps(some, start[:, None] + places, cache, recent)
        return logits, after._replace(count=recent.count + kept), places, right

    def put(found, logits, places, right):
        rows = jnp.broadcast_to(jnp.arange(ROWS)[:, None], places.shape)
        return found.at[rows, jnp.where(right, places, fed.shape[1])].set(logits, mode="drop")

    for stored, rounds in ((False, ROUNDS), (True, ROUNDS), (True, ROUNDS[:1])):
        if stored:
            cache = models.store_recent(cache, recent)
            recent = models.no_recent(cache, ROOM, by_row=True)
        for kept in map(jnp.array, rounds):
            logits, recent, places, right = read(cache, recent, taken, kept)
            found, taken = put(found, logits, places, right), taken + kept
    return found, taken


def check(config, params):
    """Asserts that both say the same of every token that was read, to 1e-5 of the largest logit."""
    rng = np.random.default_rng(0)
    vocab = min(config.vocab_size, 500)
    tokens = rng.integers(8, vocab, (ROWS, PROMPT)).astype(np.int32)
    fed = rng.integers(8, vocab, (ROWS, 2 * MOST)).astype(np.int32)
    expected = one_at_a_time(config, params, tokens, fed)
    found, taken = several_at_once(config, params, tokens, fed)
    worst = max(abs(found[row, :count] - expected[row, :count]).max() for row, count in enumerate(taken))
    largest = float(abs(expected).max())
    print(f"logits up to {largest:.0f}: several at once are within {worst:.1e} of one at a time")
    assert largest > 0.1
    assert worst <= 1e-5 * max(1.0, largest)
    assert (found[0, : taken[0]].argmax(-1) == expected[0, : taken[0]].argmax(-1)).all()


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_several_steps_equal_single_ones(name):
    config = tiny_models.configs()[name]
    check(config, tiny_models.random_params(config))


def test_windows_that_come_round_at_each_rows_pace():
    """Of five places, fewer than a chunk has tokens, and of twelve, which the rows fill at different times."""
    check(WINDOWS, jax.tree.map(lambda a: 2 * a, models.init_params(WINDOWS, 0)))


def test_positions_beyond_the_context_leave_the_others_alone():
    """A learned position that is not there would be NaN, and 0 · NaN is, too."""
    learned = replace(tiny_models.SMALL, rope=None, norm="layer", gated=False, max_positions=PROMPT + 3)
    params, rng = models.init_params(learned, 0), np.random.default_rng(0)
    tokens = rng.integers(8, 500, (ROWS, PROMPT)).astype(np.int32)

    @jax.jit
    def read(params, tokens, fed):
        model = models.bind(learned, params)
        cache, start = prefilled(model, learned, tokens)
        recent = models.no_recent(cache, ROOM, by_row=True)
        return model.steps(fed, start[:, None] + jnp.arange(fed.shape[1]), cache, recent)[0]

    longer = rng.integers(8, 500, (ROWS, 6)).astype(np.int32)
    found, expected = (read(params, tokens, fed) for fed in (longer, longer[:, :3]))
    np.testing.assert_allclose(found[:, :3], expected, atol=1e-5)
