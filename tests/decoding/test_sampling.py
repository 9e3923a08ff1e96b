"""Truncation against a sort, draws against their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from dera_jax.decoding import sampling
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.row_sampling import RowSampling, kth_largest
from dera_jax.decoding.sampling import Sampling


def exact_truncation(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """The kept words of one row by sorting in float64; ties with the last kept word are kept."""
    h = logits.astype(np.float64) / temperature
    kept = np.ones(len(h), bool)
    if top_k:
        kept &= h >= np.sort(h)[::-1][min(top_k, len(h)) - 1]
    if top_p:
        p = np.where(kept, np.exp(h - h.max()), 0)
        p /= p.sum()
        order = np.argsort(-p)
        before = np.cumsum(p[order]) - p[order]
        kept &= p >= p[order][before < top_p][-1]
    return kept


@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.3, 0.95])
@pytest.mark.parametrize("vocab", [40, 513])
def test_keeps_what_a_sort_keeps(vocab, top_k, top_p):
    logits = np.asarray(2 * jax.random.normal(jax.random.key(vocab), (8, vocab)))
    settings = Sampling.create(0.7, top_k, top_p)
    kept = np.isfinite(jax.jit(sampling.truncate)(logits, settings))
    for row in range(8):
        np.testing.assert_array_equal(kept[row], exact_truncation(logits[row], 0.7, top_k, top_p))


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("top_k", [2, 3, 6, 7])
@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.9, 0.999])
def test_the_nucleus_is_of_all_that_top_k_keeps(top_k, top_p, shards):
    """Words as probable as the k-th too, against transformers; of equals at its border transformers keeps a part."""
    values = np.random.default_rng(0).integers(0, 4, (64, 12)).astype(np.float32)
    values[0] = [3, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0]
    ours = np.isfinite(sampling.truncate(jnp.asarray(values), Sampling.create(1.0, top_k, top_p, shards)))
    theirs = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, torch.tensor(values))).isfinite()
    smallest = np.where(theirs.numpy(), values, np.inf).min(-1, keepdims=True)
    np.testing.assert_array_equal(ours, values >= smallest)


@pytest.mark.parametrize("rule_forbids", [False, True])
def test_extreme_temperatures(rule_forbids):
    logits = 90 * jax.random.normal(jax.random.key(0), (64, 40))
    logits = logits.at[:, :5].set(-jnp.inf) if rule_forbids else logits
    keys = jax.random.split(jax.random.key(1), 64)
    for cold in (1e-29, 1e-31, 1e-37, 1e-39, 1e-45, 1e-320):
        words, logprobs = sampling.sample(keys, logits, Sampling.create(cold))
        np.testing.assert_array_equal(words, logits.argmax(-1))
        np.testing.assert_allclose(logprobs, 0, atol=1e-6)
    for hot in (1e30, 1e39, 1e300):
        words, logprobs = sampling.sample(keys, logits, Sampling.create(hot))
        np.testing.assert_allclose(logprobs, -np.log(35 if rule_forbids else 40), rtol=1e-5)
        assert not rule_forbids or min(words) >= 5


def test_other_libraries_words_for_all_words():
    assert DecodeConfig(top_k=0) == DecodeConfig(top_k=-1) == DecodeConfig()
    for none in (False, -2):
        with pytest.raises(ValueError, match="top_k: expected a whole number, at least 1"):
            DecodeConfig(top_k=none)


def test_the_most_probable_word_is_always_kept():
    flat = jnp.zeros((1, 300))
    assert np.isfinite(sampling.truncate(flat, Sampling.create(1.0, None, 1e-6))).all()
    peaked = flat.at[0, 17].set(80.0)
    assert np.isfinite(sampling.truncate(peaked, Sampling.create(1.0, None, 1e-6))).sum() == 1


@pytest.mark.parametrize("vocab", [3, 128, 300])
def test_draws_follow_the_distribution(vocab):
    logits = 1.5 * jax.random.normal(jax.random.key(1), (vocab,))
    draws = 20_000
    keys = jax.random.split(jax.random.key(2), draws)
    words, logprobs = jax.jit(sampling.sample)(keys, jnp.broadcast_to(logits, (draws, vocab)), Sampling())
    counts = np.bincount(words, minlength=vocab)
    expected = np.asarray(jax.nn.softmax(logits), np.float64)
    rare = expected * draws < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    frequencies = np.append(expected[~rare], expected[rare].sum())
    kept = frequencies > 0
    assert stats.chisquare(counts[kept], frequencies[kept] / frequencies.sum() * draws).pvalue > 1e-3
    np.testing.assert_allclose(logprobs[:50], jax.nn.log_softmax(logits)[words[:50]], atol=1e-5)


def test_a_draw_depends_on_its_own_key_alone():
    logits = jax.random.normal(jax.random.key(3), (6, 500))
    keys = jax.random.split(jax.random.key(4), 6)
    together, _ = sampling.sample(keys, logits, Sampling())
    order = jnp.array([3, 0, 5, 1, 4, 2])
    shuffled, _ = sampling.sample(keys[order], logits[order], Sampling())
    np.testing.assert_array_equal(together[order], shuffled)


def test_rounding_hardly_ever_flips_a_draw():
    """Logits disturbed as another batch shape disturbs them change at most 1e-4 of the words."""
    rows, vocab = 4000, 1000
    logits = 3 * jax.random.normal(jax.random.key(5), (rows, vocab))
    disturbed = logits * (1 + 1e-6 * jax.random.normal(jax.random.key(6), logits.shape))
    keys = jax.random.split(jax.random.key(7), rows)
    one, _ = sampling.sample(keys, logits, Sampling())
    other, _ = sampling.sample(keys, disturbed, Sampling())
    changed = int((one != other).sum())
    print(f"changed words: {changed} of {rows}")
    assert changed <= 2


def test_greedy_takes_the_first_of_the_most_probable():
    keys, logits = jax.random.split(jax.random.key(0), 1), jnp.array([[0.0, 2.0, 2.0]])
    words, logprobs = sampling.sample(keys, logits, Sampling.create(0.0))
    assert words.tolist() == [1] and logprobs.tolist() == [0.0]


def test_other_values_need_no_compilation():
    run = jax.jit(lambda *arguments: sampling.sample(*arguments))
    keys, logits = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 30))
    for temperature, top_p in [(0.5, 0.9), (0.7, 0.8), (1.3, 0.1)]:
        run(keys, logits, Sampling.create(temperature, 10, top_p))
    assert run._cache_size() == 1


def test_seeds_that_no_key_can_hold_are_refused():
    from dera_jax.decoding.config import DecodeConfig

    jax.random.key(DecodeConfig(seed=2**63 - 1).seed)
    with pytest.raises(ValueError, match="seed: expected a whole number, at most"):
        DecodeConfig(seed=2**63)


@pytest.mark.parametrize("top_p", [None, 0.95])
def test_top_k_does_not_sort_the_vocabulary(top_p):
    """Where only the k-th largest is used, XLA makes a sort of top-k, 80 times as slow on a CPU."""
    logits = jax.ShapeDtypeStruct((32, 32000), jnp.float32)
    compiled = (
        jax.jit(lambda x: sampling.truncate(x, Sampling.create(1.0, 50, top_p))).lower(logits).compile()
    )
    assert " sort(" not in compiled.as_text() and "TopK" in compiled.as_text()


@pytest.mark.parametrize("vocab", [40, 513])
def test_rows_of_their_own_settings_keep_what_a_sort_keeps(vocab):
    logits = 2 * jax.random.normal(jax.random.key(vocab), (12, vocab))
    logits = logits.at[3:5].set(jnp.round(logits[3:5]))  # ties, zeros of both signs
    top_k = [None, 1, 5, 1000] * 3
    top_p = [None, 0.3, 0.95] * 4
    temperature = [0.7, 1.0, 2.5, 0.4] * 3
    rows = RowSampling.of(
        [
            DecodeConfig(temperature=t, top_k=k, top_p=p)
            for t, k, p in zip(temperature, top_k, top_p, strict=True)
        ]
    )
    # A word is drawn only if it is kept, and its probability is that of the words kept.
    drawn = jax.jit(lambda key: rows.sample(jax.random.split(key, 12), logits))
    words, logprobs = map(np.asarray, jax.vmap(drawn)(jax.random.split(jax.random.key(1), 400)))
    for row, (t, k, p) in enumerate(zip(temperature, top_k, top_p, strict=True)):
        kept = exact_truncation(np.asarray(logits[row]), t, k, p)
        exact = np.where(kept, np.asarray(logits[row], np.float64) / t, -np.inf)
        exact -= np.logaddexp.reduce(exact)
        np.testing.assert_allclose(logprobs[:, row], exact[words[:, row]], atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 40, 10**9])
def test_the_kth_largest_is_that_of_a_sort(count):
    logits = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    logits[:10, ::3] = -np.inf
    logits[10:20] = np.round(logits[10:20])
    logits[20] = [-0.0, 0.0] * 20
    logits[21:23] *= 1e38
    found = kth_largest(jnp.asarray(logits), jnp.full(30, count))
    np.testing.assert_array_equal(found, np.sort(logits, axis=-1)[:, -min(count, 40)])
