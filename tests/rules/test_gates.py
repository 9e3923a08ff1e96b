"""Schedules, gates, budgets and sets of words: each a law that its equation says."""

import numpy as np
import pytest
import torch
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

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
