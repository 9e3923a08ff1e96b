"""Schedules, gates, budgets and sets of words: each a law that its equation says."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

from dera_jax.rules import contrast
from tests.support.ruled import at_once, logprobs_of, nats, random_logits

LOGITS = random_logits(rows=64)
REFERENCE, ALIGNED = logprobs_of(LOGITS)


def test_the_first_tokens_are_mixed_and_the_others_the_references():
    for drawn, strength in ((0, 0.7), (4, 0.7), (5, 0), (90, 0)):
        found = at_once("first:tokens=5", LOGITS, 0.7, drawn=drawn)
        np.testing.assert_array_equal(found, at_once("linear", LOGITS, strength))


def test_schedules_are_strengths_of_their_own():
    for spec, drawn, strength in (
        ("ramp:tokens=8", 0, 0.0),
        ("ramp:tokens=8", 2, 0.35),
        ("ramp:tokens=8", 80, 1.4),
        ("decay:tokens=4", 0, 1.4),
        ("decay:tokens=4", 8, 1.4 * np.exp(-2)),
    ):
        wanted = at_once("linear", LOGITS, strength)
        np.testing.assert_allclose(at_once(spec, LOGITS, 1.4, drawn=drawn), wanted, atol=1e-5)


def test_the_aligned_model_speaks_where_the_reference_is_unsure():
    for spec, unsure in (
        ("nudging:gamma=0.2", np.exp(REFERENCE).max(axis=-1) < 0.2),
        ("entropy:above=2.5", -(np.exp(REFERENCE) * REFERENCE).sum(axis=-1) > 2.5),
    ):
        assert 5 < unsure.sum() < 59
        wanted = np.where(unsure[:, None], at_once("linear", LOGITS, 1.3), REFERENCE)
        np.testing.assert_allclose(at_once(spec, LOGITS, 1.3), wanted, atol=1e-5)


@pytest.mark.parametrize("nats_", [1e-3, 0.1, 0.7])
@pytest.mark.parametrize("strength", [2.0, 1e4])
def test_a_budget_is_met_where_the_strength_would_spend_more(nats_, strength):
    found = at_once(f"kl-budget:nats={nats_}", LOGITS, strength)
    asked = at_once("linear", LOGITS, strength)
    dear = nats(asked, REFERENCE) > nats_
    assert dear.sum() > 10
    np.testing.assert_allclose(nats(found, REFERENCE)[dear], nats_, atol=1e-4)
    np.testing.assert_allclose(found[~dear], asked[~dear], atol=1e-5)


def test_a_budget_holds_for_whatever_combines():
    found = at_once("kl-budget:nats=0.05+power:p=1", LOGITS, 1.0)
    np.testing.assert_allclose(nats(found, REFERENCE), 0.05, atol=1e-4)


def test_nothing_to_spend_is_the_reference():
    found = at_once("kl-budget:nats=0", LOGITS, 3.0)
    assert nats(found, REFERENCE).max() < 1e-6


def test_words_that_the_aligned_model_finds_implausible_are_not_drawn():
    likely = ALIGNED.max(axis=-1, keepdims=True) + np.log(0.3) <= ALIGNED
    found = at_once("plausible:alpha=0.3", LOGITS, 2.0)
    kept = np.where(likely, at_once("linear", LOGITS, 2.0), -np.inf)
    kept -= np.log(np.exp(kept).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(found[likely], kept[likely], atol=1e-5)
    assert np.exp(found[~likely]).max() == 0


def test_no_share_keeps_all_words_to_the_bit():
    found = at_once("plausible:alpha=0", LOGITS, 0.7)
    np.testing.assert_array_equal(found, at_once("linear", LOGITS, 0.7))


def test_contrast_is_where_large_strengths_lead():
    """The most likely word of both, among the plausible ones."""
    contrast = at_once("contrastive+plausible", LOGITS, 1.0)
    large = at_once("plausible", LOGITS, 1e4)
    np.testing.assert_array_equal(contrast.argmax(axis=-1), large.argmax(axis=-1))
    differs = ALIGNED.argmax(axis=-1) != contrast.argmax(axis=-1)
    assert differs.sum() > 5


def test_contrast_as_its_paper_has_it():
    """(1 + β) expert − β amateur in the expert's set is the mixture at λ = 1 + β there (arXiv:2309.09117, Eq. 2)."""
    beta, likely = 0.5, ALIGNED.max(axis=-1, keepdims=True) + np.log(0.1) <= ALIGNED
    scores = np.where(likely, (1 + beta) * ALIGNED - beta * REFERENCE, -np.inf)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    found = at_once("plausible:alpha=0.1", LOGITS, 1 + beta)
    np.testing.assert_allclose(found[likely], scores[likely], atol=1e-5)


def test_guidance_as_transformers_has_it():
    """The mixture's strength is the scale of classifier-free guidance, the reference the unconditional model."""
    for scale in (0.5, 1.5, 4.0):
        guided = Guidance(scale, model=None)
        guided.get_unconditional_logits = lambda _: torch.tensor(np.asarray(LOGITS[0]))[:, None]
        scores = guided(torch.zeros(len(LOGITS[1]), 1, dtype=torch.long), torch.tensor(np.asarray(LOGITS[1])))
        wanted = torch.log_softmax(scores.double(), dim=-1).numpy()
        np.testing.assert_allclose(at_once("linear", LOGITS, scale), wanted, atol=1e-5)


def test_proxies_of_equal_size_are_the_tuned_model():
    """Base + tuned − untuned: λ = (1, −1); with both small models alike it is the base, with the base as the untuned
    one the tuned model."""
    base, tuned, untuned = random_logits(models=3)
    alike = np.stack([base, untuned, untuned])
    np.testing.assert_allclose(at_once("linear", alike, 1, -1), logprobs_of(base), atol=1e-5)
    own = np.stack([base, tuned, base])
    np.testing.assert_allclose(at_once("linear", own, 1, -1), logprobs_of(tuned), atol=1e-5)


def test_amulet_is_a_mixture():
    """Its steps in a loop, against the strength that docs/explanation/kin.md gives (arXiv:2502.19148)."""
    alpha, kappa, eta, steps = 2.0, 2.0, 10.0, 20
    policy, gains = ALIGNED, np.zeros_like(ALIGNED)
    strengths = [1.0]
    for i in range(1, steps + 1):
        gains += alpha * (policy - REFERENCE)
        scale = kappa + 1 / (eta * i)
        policy = (kappa * ALIGNED + gains / i + policy / (eta * i)) / scale
        policy -= np.log(np.exp(policy - policy.max(-1, keepdims=True)).sum(-1, keepdims=True)) + policy.max(
            -1, keepdims=True
        )
        strengths.append((kappa + alpha / i * sum(strengths) + strengths[-1] / (eta * i)) / scale)
    assert strengths[-1] == pytest.approx(4.57, abs=0.005)
    np.testing.assert_allclose(at_once("linear", LOGITS, strengths[-1]), policy, atol=1e-4)


def sample_space(reference, aligned, words):
    """Returns the words in the first k of both, k the smallest with so many (arXiv:2402.08983, §4.2), as a loop."""
    orders = [np.argsort(-each, kind="stable") for each in (reference, aligned)]
    for k in range(1, len(reference) + 1):
        if len(both := {*orders[0][:k]} & {*orders[1][:k]}) >= words:
            break
    return sorted(both)


def safe_decoding(reference, aligned, strength, words):
    """Returns the probabilities of one row: of the sample space alone, with the floor of the paper's code."""
    wanted, kept = np.zeros(len(reference)), sample_space(reference, aligned, words)
    mixed = np.exp(reference) + strength * (np.exp(aligned) - np.exp(reference))
    wanted[kept] = np.maximum(mixed[kept], 1e-8)
    return wanted / wanted.sum()


@pytest.mark.parametrize(
    ("words", "strength"), [(1, 3.0), (5, 3.0), (5, 0.5), (20, 1.0), (50, 7.0), (999, 3.0)]
)
def test_safe_decoding_as_its_paper_has_it(words, strength):
    spec = f"first:tokens=2+probabilities+common:words={words}"
    wanted = [safe_decoding(*rows, strength, words) for rows in zip(REFERENCE, ALIGNED, strict=True)]
    found = np.exp(at_once(spec, LOGITS, strength, drawn=1))
    np.testing.assert_allclose(found, wanted, atol=3e-5)
    np.testing.assert_allclose(at_once(spec, LOGITS, strength, drawn=2), REFERENCE, atol=1e-5)


def test_common_words_with_nothing_left_are_equally_likely():
    """As in the paper's code, which floors them: here the one common word has no probability left."""
    reference, aligned = np.full(6, -30.0), np.full(6, -30.0)
    reference[[0, 1, 2]], aligned[[3, 4, 1]] = [-0.01, -2.0, -9.0], [-0.5, -1.0, -9.5]
    logits = np.stack([reference, aligned])[:, None].astype(np.float32)
    found = np.exp(at_once("probabilities+common:words=1", logits, 5.0))[0]
    np.testing.assert_allclose(found, [0, 1, 0, 0, 0, 0], atol=1e-6)


def test_common_words_are_those_of_all_models():
    three = random_logits(models=3, rows=8)
    orders = np.argsort(-np.asarray(three), axis=-1)
    for row, found in enumerate(np.exp(at_once("common:words=4", three, 0.4, 0.4))):
        kept = set(np.flatnonzero(found))
        k = next(k for k in range(60) if len(set.intersection(*({*o[row, :k]} for o in orders))) >= 4)
        assert kept == set.intersection(*({*order[row, :k]} for order in orders))


def blend_in(reference, aligned, gamma):
    """Returns the probabilities of one row, as the published code of arXiv:2606.11201 blends them."""
    reference, aligned = np.exp(reference), np.exp(aligned)
    if reference.max() >= gamma:
        return reference
    share = aligned.max() / (reference.max() + aligned.max()) + 0.1 * reference[aligned.argmax()]
    share = min(share, 1.0)
    return share * aligned + (1 - share) * reference


def test_blend_in_as_its_code_has_it():
    spec = "nudging:gamma=0.2+confidence+power:p=1"
    wanted = np.array([blend_in(*rows, 0.2) for rows in zip(REFERENCE, ALIGNED, strict=True)])
    np.testing.assert_allclose(np.exp(at_once(spec, LOGITS, 1.0)), wanted, atol=1e-6)


def test_models_of_equal_confidence_share_the_strength():
    logits = np.stack([np.roll(np.asarray(LOGITS[0]), shift, axis=-1) for shift in range(3)])
    found = at_once("confidence:agreement=0", logits, 1.0, 1.0)
    np.testing.assert_allclose(found, at_once("linear", logits, 1 / 3, 1 / 3), atol=1e-5)
    # One with no strength takes no part.
    found = at_once("confidence:agreement=0", logits, 1.0, 0.0)
    np.testing.assert_allclose(found, at_once("linear", logits, 1 / 2, 0), atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
def test_confidence_gives_weights_that_averages_take(scale):
    """Of any models, also sure ones that agree, whose brackets sum to more than 1."""
    three = random_logits(models=3, rows=32, scale=scale)
    alike = three.at[1:].set(three[0] * np.array([2.0, 3.0])[:, None, None])
    for logits in (three, alike):
        found = at_once("confidence:agreement=1+power:p=1", logits, 1.0, 1.0)
        mean = np.exp(found)
        each = np.exp(logprobs_of(logits))
        assert (mean <= each.max(axis=0) + 1e-5).all() and (mean >= each.min(axis=0) - 1e-5).all()


@pytest.mark.parametrize("spec", ["confidence", "common", "probabilities+common", "nudging+confidence"])
def test_no_strength_is_the_reference(spec):
    np.testing.assert_allclose(at_once(spec, LOGITS, 0), REFERENCE, atol=2e-6)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("words", [1, 5, 100])
def test_common_words_of_the_first_are_those_of_all(apart, words):
    """In a large vocabulary, where the models agree and where they do not, ties among the logits too."""
    rng = np.random.default_rng(words)
    first = rng.normal(0, 3, (4, 3000))
    second = rng.normal(0, 3, first.shape) if apart else first + rng.normal(0, 0.5, first.shape)
    # Rounded, there are ties, those of 0.0 and -0.0 among them.
    logits = jnp.asarray(np.stack([first, second]).round(1), jnp.float32)
    last = jnp.full((4, 1), words - 1)
    top, found = contrast._common_of_top(jnp.where(logits == 0, 0.0, logits), last)
    everything = np.asarray(contrast._common_of_all(jnp.where(logits == 0, 0.0, logits), last))
    assert found.any() if words < 100 else bool(found.all()) is not apart
    assert np.isin(everything.sum(axis=1) - words, (0, 1)).all()
    for row in np.flatnonzero(np.asarray(found)[:, 0]):
        np.testing.assert_array_equal(np.asarray(top)[row], everything[row])
    kept = np.exp(at_once(f"common:words={words}", logits, 0.5)) > 0
    np.testing.assert_array_equal(kept, everything)
