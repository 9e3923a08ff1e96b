"""The rule tilt: its law by enumeration, the linear rule where 1/β is 0, what rows say, which models it takes."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from dera_jax import generate, sweep
from dera_jax.data.batches import make_batch
from dera_jax.realign import strength_weights
from dera_jax.rules.known import load_rule
from dera_jax.rules.rule import linear_rule, named
from dera_jax.rules.tilt import tilt
from dera_jax.scoring.logprobs import completion_logits
from tests.support.swept import SETTINGS, TEXTS, by_key
from tests.support.toy import all_completions, exact_logprobs, tiny_policy
from tests.support.value_heads import random_value_head

PROMPT, LONGEST = (1, 2, 0, 2), 3
COMPLETIONS = all_completions(4, LONGEST)


def logits_of(models, rows=5, vocab=7, seed=0):
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(models, rows, vocab)), jnp.float32)


def weights_of(strength, rows=5):
    return jnp.broadcast_to(strength_weights(strength), (rows, 1 + len(strength)))


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_with_true_values_completions_have_the_optimal_law(toy, beta):
    """V(y₍≤t₎) = β log E[exp(R/β) | y₍≤t₎] gives π_ref(y) exp(R(y)/β) / Z, whatever the lengths."""
    logprobs = exact_logprobs(tiny_policy(toy, 2, scale=1.5), PROMPT, COMPLETIONS)
    rewards = np.random.default_rng(1).normal(size=len(COMPLETIONS))
    whole = np.array([
        sum(each[t, word] for t, word in enumerate(completion))
        for each, completion in zip(logprobs, COMPLETIONS, strict=True)
    ])  # fmt: skip

    def value(prefix):
        inside = [n for n, completion in enumerate(COMPLETIONS) if completion[: len(prefix)] == prefix]
        if not inside:  # beyond EOS or the end
            return 0.0
        return beta * (logsumexp(whole[inside] + rewards[inside] / beta) - logsumexp(whole[inside]))

    places = [(n, t) for n, completion in enumerate(COMPLETIONS) for t in range(len(completion))]
    values = [[value((*COMPLETIONS[n][:t], v)) for v in range(4)] for n, t in places]
    logits = jnp.float32([[logprobs[n][t] for n, t in places], values])
    tilted, _ = tilt(logits, weights_of((1 / beta,), len(places)), None)
    found = np.zeros(len(COMPLETIONS))
    for (n, t), each in zip(places, log_softmax(np.asarray(tilted, float), axis=-1), strict=True):
        found[n] += each[COMPLETIONS[n][t]]
    expected = whole + rewards / beta
    np.testing.assert_allclose(found, expected - logsumexp(expected), atol=2e-5)


@pytest.mark.bits
@pytest.mark.parametrize("aligned", [(), (0.3,), (-1.7,), (0.1, 40.0)])
def test_no_tilt_is_the_linear_rule_to_the_bit(aligned):
    logits = logits_of(2 + len(aligned))
    ours, _ = tilt(logits, weights_of((*aligned, 0.0)), None)
    theirs, _ = linear_rule(logits[:-1], weights_of(aligned), None)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("aligned", [(), (0.3,), (-0.5, 0.8)])
@pytest.mark.parametrize("inverse", [0.1, 2.0, -3.0])
def test_the_last_strength_is_the_inverse_beta(aligned, inverse):
    logits = logits_of(2 + len(aligned))
    strengths = np.array([1 - sum(aligned), *aligned, inverse])
    expected = softmax(np.einsum("mrv,m->rv", np.asarray(logits, float), strengths), axis=-1)
    tilted, _ = tilt(logits, weights_of((*aligned, inverse)), None)
    np.testing.assert_allclose(softmax(np.asarray(tilted, float), axis=-1), expected, atol=1e-6)
    moved = logits.at[-1].add(jnp.arange(5.0)[:, None])
    again, _ = tilt(moved, weights_of((*aligned, inverse)), None)
    np.testing.assert_allclose(again, tilted, atol=1e-4)


@pytest.mark.parametrize("inverse", [1e4, 1e8, -1e8])
def test_a_large_tilt_keeps_the_differences_of_equal_values(inverse):
    """Of the words that are worth most the reference's probabilities are left."""
    logits = logits_of(2)
    best = np.sign(inverse) * 0.7
    logits = logits.at[1].set(jnp.where(jnp.arange(7) < 3, best, 0.1 * best))
    tilted, _ = tilt(logits, weights_of((inverse,)), None)
    found = softmax(np.asarray(tilted, float), axis=-1)
    expected = softmax(np.asarray(logits[0, :, :3], float), axis=-1)
    assert np.isfinite(tilted).all() and found[:, 3:].max() < 1e-6
    np.testing.assert_allclose(found[:, :3], expected, atol=1e-6)


def test_it_has_one_name_however_it_is_written():
    assert load_rule("tilt") == named(tilt) == load_rule("dera_jax.rules.tilt:tilt") == (tilt, "tilt")


def test_every_token_is_drawn_from_the_tilted_reference(pair):
    """By reading the completions again; the divergence is that of the drawn policy from the reference."""
    reference, value = pair[0], random_value_head(pair[0])
    rows = list(sweep((reference, value), TEXTS, [0, 0.5, 2], rule=tilt, **SETTINGS))
    for row in rows:
        batch = make_batch([row["prompt_tokens"]], [row["tokens"]])
        base, worth = (
            np.asarray(completion_logits(one.config, one.params, batch)[0, : len(row["tokens"])], float)
            for one in (reference, value)
        )
        own, mixed = log_softmax(base, -1), log_softmax(base + row["lambda"] * worth, -1)
        places = np.arange(len(row["tokens"])), row["tokens"]
        assert row["logprob"] == pytest.approx(mixed[places].sum(), abs=2e-3)
        assert row["reference_logprob"] == pytest.approx(own[places].sum(), abs=2e-3)
        divergence = (np.exp(mixed) * (mixed - own)).sum()
        assert row["kl_to_reference"] == pytest.approx(divergence, abs=2e-3)
        assert row["rule"] == "tilt" and row["aligned_logprob"] is None and row["log_normalizer"] is None
    assert all(row["kl_to_reference"] == 0 for row in rows if row["lambda"] == 0)
    assert min(row["kl_to_reference"] for row in rows if row["lambda"] == 2) > 0.1
    plain = by_key(list(sweep(pair, TEXTS, [0.0], **SETTINGS)))
    for row in rows:
        if row["lambda"] == 0:
            assert row["tokens"] == plain[row["prompt_id"], 0, "0.0"]["tokens"]


def test_beside_an_aligned_model_any_two_strengths_go_together(pair):
    value = random_value_head(pair[0])
    found = list(sweep((*pair, value), TEXTS, [(0.5, 0.0), (0.5, 1.0)], rule=tilt, **SETTINGS))
    plain = by_key(list(sweep(pair, TEXTS, [0.5], **SETTINGS)))
    for row in found:
        assert isinstance(row["aligned_logprob"], float)
        if row["lambda"] == [0.5, 0.0]:
            same = plain[row["prompt_id"], 0, "0.5"]
            assert row["tokens"] == same["tokens"] and row["kl_to_reference"] == same["kl_to_reference"]


def takes_anything(logits, weights, state):
    return logits[0], state


def test_models_that_do_not_fit_the_rule_are_a_line(pair):
    reference, aligned = pair
    value, other = random_value_head(reference), replace(reference, fingerprint="another")
    for policies, rule, said in [
        (pair, tilt, "rule tilt: expected a value head .* as the last model, found .*reference, a language"),
        ((reference, value), linear_rule, "rule linear: .* is a value head; the rule tilt takes one"),
        ((reference, value), takes_anything, "takes_anything: .* is a value head"),
        ((reference, value, aligned), tilt, "is a value head; expected it as the last model"),
        ((other, value), tilt, "a value head of another model than the reference"),
    ]:
        strength = [(0.0,) * (len(policies) - 1)]
        with pytest.raises(ValueError, match=said) as caught:
            list(sweep(policies, TEXTS[:1], strength, rule=rule, **SETTINGS))
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=said):
            generate(policies, TEXTS[:1], strength[0], rule=rule, max_new_tokens=4)
