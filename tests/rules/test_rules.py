"""Rules of one's own, as a sweep takes them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.realign import mix_logits
from dera_jax.rules.known import load_rule
from dera_jax.rules.rule import linear_rule, named
from tests.support.swept import LAMBDAS, SETTINGS, TEXTS, by_key, mixture_by_hand


@pytest.fixture(scope="module")
def policies(pair):
    return pair


@pytest.fixture(scope="module")
def rows(policies):
    return list(sweep(policies, TEXTS, LAMBDAS, num_samples=2, **SETTINGS))


def test_the_mixture_has_one_name_however_it_is_written():
    for spec in (None, "linear", "dera_jax.rules.rule:linear_rule", "dera_jax.realign:linear_rule"):
        assert load_rule(spec) == named(linear_rule) == (linear_rule, "linear")


def test_a_rule_that_is_the_mixture_says_the_same(policies, rows):
    found = list(sweep(policies, TEXTS, LAMBDAS, num_samples=2, rule=mixture_by_hand, **SETTINGS))
    keyed = by_key(rows)
    for row in found:
        same = keyed[row["prompt_id"], row["sample"], str(row["lambda"])]
        assert row["tokens"] == same["tokens"] and row["rule"].endswith(":mixture_by_hand")
        assert row["log_normalizer"] is None
        for name in (
            "logprob",
            "sampling_logprob",
            "reference_logprob",
            "aligned_logprob",
            "kl_to_reference",
        ):
            assert row[name] == pytest.approx(same[name], abs=1e-3)


def every_third(logits, weights, step):
    """The aligned model's word at every third step, the reference's at the others."""
    return jnp.where((step % 3 == 0)[:, None], logits[1], logits[0]), step + 1


every_third.initial_state = lambda rows: jnp.zeros(rows, jnp.int32)


def test_a_rule_keeps_a_state_for_each_row(pair):
    encoded = encode_prompts(pair, as_prompts(TEXTS), 24)
    # More cells than slots: a slot's next completion starts from the initial state.
    cells = [Request(prompt, sample, (1.0,)) for prompt in encoded for sample in range(3)]
    found = list(complete(pair, cells, DecodeConfig(max_new_tokens=24), 4, every_third))
    assert len(found) == 9
    for completion in found:
        steps = np.arange(len(completion.tokens))
        expected = completion.model_logprobs[steps, (steps % 3 == 0).astype(int)]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-5)


def not_a_number(logits, weights, state):
    return mix_logits(logits, weights) * jnp.nan, state


def wrong_shape(logits, weights, state):
    return logits, state


def no_state(logits, weights, state):
    return logits[0]


def forgets_state(logits, weights, state):
    return logits[0], None


forgets_state.initial_state = lambda rows: jnp.zeros(rows)


def fails(logits, weights, state):
    raise KeyError("gone")


@pytest.mark.parametrize(
    "rule, message",
    [
        (not_a_number, r"not_a_number: logits are not finite at token 1 of the completion of prompt 0"),
        (wrong_shape, r"wrong_shape: expected logits of shape \(2, 512\), found \(2, 2, 512\)"),
        (no_state, "no_state fails"),
        (forgets_state, "forgets_state: expected a state"),
        (fails, "fails fails on .*KeyError: 'gone'"),
    ],
)
def test_rules_that_are_none_are_named(policies, rule, message):
    with pytest.raises(ValueError, match=message):
        list(sweep(policies, TEXTS[:1], [0.5], rule=rule, **SETTINGS))


def third_by_context(logits, weights, state, context):
    """`every_third` by where a row is, not by what it has counted."""
    return jnp.where((context.drawn % 3 == 0)[:, None], logits[1], logits[0]), state


third_by_context.takes_context = True


def test_a_rule_that_asks_is_told_where_each_row_is(pair):
    encoded = encode_prompts(pair, as_prompts(TEXTS), 24)
    cells = [Request(prompt, sample, (1.0,)) for prompt in encoded for sample in range(3)]
    config = DecodeConfig(max_new_tokens=24)
    by_state, by_context = (
        {done.request.key: done.tokens for done in complete(pair, cells, config, 4, rule)}
        for rule in (every_third, third_by_context)
    )
    assert by_state == by_context


def no_repeats(logits, weights, state, context):
    """The mixture without the token that was drawn last."""
    words = jnp.arange(logits.shape[-1])
    mixed = mix_logits(logits, weights)
    return jnp.where(words == context.token[-1][:, None], -jnp.inf, mixed), state


no_repeats.takes_context = True


def test_the_context_has_the_token_drawn_last(pair):
    encoded = encode_prompts(pair, as_prompts(TEXTS), 24)
    cells = [Request(prompt, 0, (0.0,)) for prompt in encoded]
    found = list(complete(pair, cells, DecodeConfig(max_new_tokens=24, temperature=3.0), 4, no_repeats))
    for done in found:
        read = [done.request.prompt.tokens[-1][-1], *done.tokens]
        assert all(a != b for a, b in itertools.pairwise(read))
