"""The method's laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dera_jax import effective_beta, log_normalizer, mix_logits, strength_weights
from dera_jax.decoding.measure import measure
from dera_jax.rules.rule import linear_rule

pytestmark = pytest.mark.bits

VOCAB = 50
strengths = st.floats(-4, 4, allow_nan=False)


def random_logits(seed: int, models: int = 2, rows: int = 3):
    return 3 * jax.random.normal(jax.random.key(seed), (models, rows, VOCAB))


def weights_of(lambda_, rows: int = 3):
    return jnp.asarray(np.tile(strength_weights(lambda_), (rows, 1)))


@pytest.mark.parametrize("lambda_, model", [(0.0, 0), (1.0, 1)])
def test_endpoints_are_the_models_bit_for_bit(lambda_, model):
    logits = random_logits(0)
    mixed = jax.jit(mix_logits)(logits, weights_of([lambda_]))
    np.testing.assert_array_equal(mixed, logits[model])


@settings(deadline=None, max_examples=30)
@given(strengths, st.integers(0, 1000))
def test_is_the_normalized_geometric_mixture(lambda_, seed):
    """Proposition 1, with the mixture normalized in float64."""
    logits = random_logits(seed)
    reference, aligned = (np.asarray(jax.nn.softmax(h.astype(jnp.float32)), np.float64) for h in logits)
    expected = reference ** (1 - lambda_) * aligned**lambda_
    expected /= expected.sum(-1, keepdims=True)
    mixed = jax.nn.softmax(mix_logits(logits, weights_of([lambda_])))
    np.testing.assert_allclose(mixed, expected, atol=2e-5)


@pytest.mark.parametrize("beta, lambda_", [(0.5, 2.0), (0.5, 0.3), (1.0, 4.0)])
def test_recovers_the_closed_form_optimum_at_beta_over_lambda(beta, lambda_):
    """Eq. 2 and 5: with one token to draw, the optimum is known for any reward."""
    reference = random_logits(1)[0]
    reward = jax.random.normal(jax.random.key(2), reference.shape)
    aligned = reference + reward / beta
    mixed = mix_logits(jnp.stack([reference, aligned]), weights_of([lambda_]))
    optimum = reference + reward / effective_beta(beta, lambda_)
    np.testing.assert_allclose(jax.nn.softmax(mixed), jax.nn.softmax(optimum), atol=1e-5)


def test_realigning_twice_multiplies_strengths():
    reference, aligned = random_logits(3)
    once = mix_logits(jnp.stack([reference, aligned]), weights_of([0.6]))
    twice = mix_logits(jnp.stack([reference, once]), weights_of([2.5]))
    np.testing.assert_allclose(
        twice, mix_logits(jnp.stack([reference, aligned]), weights_of([1.5])), atol=1e-4
    )


def test_several_aligned_models_reduce_to_one():
    """Appendix B: λ = (a, b) of one and the same model is λ = a + b of it."""
    reference, aligned = random_logits(4)
    mixed = mix_logits(jnp.stack([reference, aligned, aligned]), weights_of([0.3, 0.5]))
    np.testing.assert_allclose(
        mixed, mix_logits(jnp.stack([reference, aligned]), weights_of([0.8])), atol=1e-5
    )


@settings(deadline=None, max_examples=50)
@given(strengths, st.integers(0, 1000))
def test_normalizer_obeys_hoelder(lambda_, seed):
    logits = random_logits(seed)
    weights = weights_of([lambda_])
    mixed = mix_logits(logits, weights)
    log_z = log_normalizer(jax.nn.logsumexp(mixed, -1), jax.nn.logsumexp(logits, -1), weights)
    assert np.all(log_z <= 1e-4) if 0 <= lambda_ <= 1 else np.all(log_z >= -1e-4)


@settings(deadline=None, max_examples=20)
@given(strengths, st.integers(0, 1000))
def test_measured_figures_are_those_of_the_distributions(lambda_, seed):
    logits, weights = random_logits(seed), weights_of([lambda_])
    mixed = mix_logits(logits, weights)
    token = jnp.array([0, 7, VOCAB - 1])
    record = measure(logits, mixed, weights, token, mixture=True)
    exact = np.asarray(logits, np.float64)
    logprobs = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    unnormalized = (1 - lambda_) * logprobs[0] + lambda_ * logprobs[1]
    log_z = np.log(np.exp(unnormalized).sum(-1))
    mixture = unnormalized - log_z[:, None]
    rows = np.arange(3)
    np.testing.assert_allclose(record.logprob, mixture[rows, token], atol=2e-4)
    np.testing.assert_allclose(record.model_logprobs, logprobs[:, rows, token].T, atol=1e-5)
    np.testing.assert_allclose(
        record.kl_to_reference, (np.exp(mixture) * (mixture - logprobs[0])).sum(-1), atol=2e-4
    )
    np.testing.assert_allclose(record.log_normalizer, log_z, atol=2e-4)


def test_forbidden_words_do_not_spoil_the_divergence():
    logits = random_logits(5)
    mixed = logits[1].at[:, 10:].set(-jnp.inf)
    record = measure(logits, mixed, weights_of([1.0]), jnp.zeros(3, jnp.int32), mixture=False)
    assert np.isfinite(record.kl_to_reference).all() and record.log_normalizer is None


def test_effective_beta():
    assert effective_beta(0.1, 0.0) == float("inf")
    assert effective_beta(0.1, 2.0) == 0.05
    assert np.isnan(effective_beta(0.1, -1.0))


EXTREME = [17.0, 50.0, -50.0, 1e3, 1e4, -1e4, 1e6, 1e8, -1e8]


def ordinary_logits(vocab=4000, rows=6):
    """Returns float32 logits as models have them: with an offset, and near each other."""
    random = np.random.default_rng(0)
    reference = (random.normal(0, 4, (1, rows, vocab)) + 12).astype(np.float32)
    aligned = reference + 0.3 * random.normal(size=reference.shape).astype(np.float32)
    # Where the two differ most, some words differ by almost as much: by rounding alone.
    aligned[..., :6] = reference[..., :6] + np.float32(3.3)
    return np.concatenate([reference, aligned])


@pytest.mark.parametrize("lambda_", EXTREME)
def test_figures_of_extreme_strengths_are_those_of_float64(lambda_):
    """Of the same float32 logits. log z is itself of the size of λ: it is known to a few millionths of that."""
    logits = ordinary_logits()
    rows = logits.shape[1]
    weights = weights_of([lambda_], rows)
    exact = logits.astype(np.float64)
    logprobs = exact - np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= exact.max(-1, keepdims=True)
    weight = float(np.float32(lambda_))
    unnormalized = logprobs[0] + weight * (logprobs[1] - logprobs[0])
    top = unnormalized.max(-1)
    log_z = top + np.log(np.exp(unnormalized - top[:, None]).sum(-1))
    mixture = unnormalized - log_z[:, None]
    kl = (np.exp(mixture) * (mixture - logprobs[0])).sum(-1)
    mixed, _ = jax.jit(linear_rule)(jnp.asarray(logits), weights, None)
    np.testing.assert_array_equal(mixed.argmax(-1), mixture.argmax(-1))
    likely = mixture > -20
    if 0 < lambda_ < 1e7:
        assert likely.sum() > rows  # more than the first word
    np.testing.assert_allclose(jax.nn.log_softmax(mixed)[likely], mixture[likely], atol=5e-5)
    token = mixture.argmax(-1).astype(np.int32)
    record = jax.jit(measure, static_argnames="mixture")(
        jnp.asarray(logits), mixed, weights, jnp.asarray(token), mixture=True
    )
    np.testing.assert_allclose(record.logprob, mixture[np.arange(rows), token], atol=5e-5)
    np.testing.assert_allclose(record.kl_to_reference, kl, atol=5e-5)
    np.testing.assert_allclose(record.log_normalizer, log_z, atol=5e-6 * max(1, abs(lambda_)))
    # And the sum itself, to what float32 holds of numbers of its size.
    summed = np.asarray(jax.jit(mix_logits)(jnp.asarray(logits), weights), np.float64)
    expected = exact[0] + weight * (exact[1] - exact[0])
    np.testing.assert_allclose(summed, expected, atol=5e-7 * abs(expected).max())


def test_rows_of_large_weights_leave_the_others_as_they_are():
    logits = jnp.asarray(ordinary_logits(rows=4))
    lambdas = np.array([[0.0], [0.7], [1e6], [1.0]])
    mixed, _ = jax.jit(linear_rule)(logits, jnp.asarray(strength_weights(lambdas)), None)
    np.testing.assert_array_equal(mixed[0], logits[0, 0])
    np.testing.assert_array_equal(mixed[3], logits[1, 3])
    alone = jax.jit(mix_logits)(logits, jnp.asarray(strength_weights(lambdas)))
    np.testing.assert_allclose(mixed[1], alone[1], atol=1e-5)


def test_extreme_strengths_of_several_models():
    """λ₁ = −λ₂ of two models is a step along their difference."""
    logits = ordinary_logits()
    other = logits[1] + 0.2 * np.random.default_rng(1).normal(size=logits[1].shape).astype(np.float32)
    together = np.stack([*logits, other])
    lambdas = [1e4, -1e4]
    mixed, _ = linear_rule(jnp.asarray(together), weights_of(lambdas, len(logits[0])), None)
    exact = together.astype(np.float64)
    expected = exact[0] + 1e4 * (exact[1] - exact[0]) - 1e4 * (exact[2] - exact[0])
    expected -= expected.max(-1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    likely = expected > -20
    np.testing.assert_allclose(jax.nn.log_softmax(mixed)[likely], expected[likely], atol=1e4 * 1e-6)
