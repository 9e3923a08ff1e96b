"""Texts that grow as a search's candidates do: read on from caches, they have the rewards that torch gives them."""

import numpy as np
import pytest

from dera_jax import load_policies
from dera_jax.policies.reward_models import load_reward_model
from dera_jax.rewards import model, reading_on
from dera_jax.rewards.model import ModelReward, reward_texts
from dera_jax.search.blocks import beams, blocks
from dera_jax.search.lookahead import lookahead
from tests.support.searched import CONFIG, requests_of
from tests.support.shapes import VOCAB
from tests.support.torch_models import save
from tests.support.torch_rewards import T5, classifier, randomize

torch = pytest.importorskip("torch")

PROMPTS = 2


def grown(rounds, generator, children=3, ahead=6):
    """The texts of some decisions: prompts and their candidates, one of which is gone on from, with part of itself."""
    prompts = [generator.integers(3, VOCAB, size=n).tolist() for n in (20, 31)]
    for number in range(rounds):
        texts = [
            p + generator.integers(3, VOCAB, size=ahead).tolist() for p in prompts for _ in range(children)
        ]
        yield texts
        chosen = generator.integers(children, size=PROMPTS)
        kept = [texts[n * children + one] for n, one in enumerate(chosen)]
        # What a window has let go of cannot be had again: there, only whole texts are gone on from.
        prompts = [text[: len(text) - (generator.integers(ahead) if number < 3 else 0)] for text in kept]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_rewards_are_those_of_torch(name, tmp_path, toy):
    judge = classifier(name)
    policy = load_reward_model(str(save(judge, tmp_path, toy)))
    reader = reading_on.Reader(policy.config, policy.params)
    whole = 0
    for texts in grown(5, np.random.default_rng(0)):
        with torch.no_grad():
            theirs = [judge(torch.tensor([ids])).logits.item() for ids in texts]
        np.testing.assert_allclose(reader(texts), theirs, atol=1e-4)
        whole += sum(map(len, texts))
    assert reader.tokens < (0.9 if name == "mistral" else 0.5) * whole


def test_texts_of_any_kind(tmp_path, toy):
    """Others than the last ones, shorter, longer, the same again, more and fewer of them, one at a time, none."""
    policy = load_reward_model(str(save(classifier("llama"), tmp_path, toy)))
    reader = reading_on.Reader(policy.config, policy.params)
    draw = np.random.default_rng(1)
    long = draw.integers(3, VOCAB, size=250).tolist()
    for texts in [
        [[5], long[:17], long[:130]], [long[:130]], [long[:130], long[:129], [5, 6]], [], [long] * 2,
        [long[:200], [9] * 3], [[8, *long[1:]]],
    ]:  # fmt: skip
        np.testing.assert_allclose(reader(texts), reward_texts(policy, texts), atol=1e-5)


def test_what_ends_in_padding_is_judged_before_it(tmp_path, toy):
    judge = classifier("llama")
    policy = load_reward_model(str(save(judge, tmp_path, toy)))
    read = ModelReward(policy, "model:here").reading_on().read
    for texts in [[[5, 6, 7]], [[5, 6, 7, 0], [5, 6, 0, 0], [0, 0]], [[5, 6, 7, 0, 8, 0]]]:
        with torch.no_grad():
            theirs = [judge(torch.tensor([ids])).logits.item() for ids in texts]
        np.testing.assert_allclose(read(texts), theirs, atol=1e-4)


def test_an_encoder_reads_whole_texts(tmp_path, toy):
    from transformers import T5Config, T5ForSequenceClassification

    judge = randomize(T5ForSequenceClassification(T5Config(**T5)))
    reward = ModelReward(load_reward_model(str(save(judge, tmp_path, toy))), "model:here")
    assert reward.reading_on() is reward


@pytest.mark.parametrize(
    "make",
    [
        lambda score: blocks(4, 5, score),
        lambda score: beams(2, 2, 4, score),
        lambda score: lookahead(4, 6, 2, score),
    ],
)
def test_a_search_reads_little_and_finds_the_same(make, tmp_path, toy, monkeypatch):
    folder = save(classifier("llama"), tmp_path, toy)
    draw = make(f"model:{folder}")
    pair = load_policies()
    counts = {"on": 0, "whole": 0}
    piece, texts = reading_on.read_piece, model.reward_texts

    def read_piece(config, params, cache, tokens, count, words):
        counts["on"] += count.sum()
        return piece(config, params, cache, tokens, count, words)

    def read_whole(policy, given):
        counts["whole"] += sum(map(len, given))
        return texts(policy, given)

    monkeypatch.setattr(reading_on, "read_piece", read_piece)
    monkeypatch.setattr(model, "reward_texts", read_whole)
    found = found_by(draw, pair)
    monkeypatch.setattr(ModelReward, "reading_on", lambda self: self)
    whole = found_by(draw, pair)
    assert [done.tokens for done in found] == [done.tokens for done in whole]
    scores = [[done.search.score for done in made] for made in (found, whole)]
    np.testing.assert_allclose(*scores, atol=1e-4)
    assert counts["on"] < 0.6 * counts["whole"]


def found_by(draw, pair):
    requests = requests_of(pair, 2, 1)
    return sorted(draw(pair, requests, CONFIG, 8), key=lambda done: done.request.key)
