"""A vocabulary at many places: computed some places at a time, the numbers are those of all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from dera_jax.data.batches import make_batch
from dera_jax.data.buckets import padded_length
from dera_jax.models import places
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.places import map_places
from dera_jax.realign import strength_weights
from dera_jax.scoring.score import score_batch, score_tokens

VOCAB = 50_000


@pytest.mark.parametrize("count", [1, 16, 24, 48])
@pytest.mark.parametrize("limit", [1, 100, 10**6])
def test_places_go_in_and_out_in_order(monkeypatch, count, limit):
    monkeypatch.setattr(places, "LOGITS", limit)
    given = np.random.default_rng(0).normal(size=(3, count, 2)).astype(np.float32)
    most = []

    def function(block):
        most.append(block[0].shape[1])
        return {"x": jnp.stack([block[0], 2 * block[0]]), "sum": block[0].sum(-1)[None]}

    found = map_places(function, (jnp.asarray(given),), 3 * 10, count)
    np.testing.assert_array_equal(found["x"], np.stack([given, 2 * given]))
    np.testing.assert_allclose(found["sum"], given.sum(-1)[None], rtol=1e-6)
    assert all(count % n == 0 and (n == 1 or n * 30 <= limit) for n in most)


def test_scores_do_not_depend_on_how_many_places_are_read_at_once(pair, monkeypatch):
    numbers = np.random.default_rng(1)
    prompts, completions = (
        [numbers.integers(3, 400, size=n).tolist() for n in numbers.integers(1, most, size=5)]
        for most in (30, 60)
    )
    found = []
    for limit in (places.LOGITS, 8 * 512 * 4):
        jax.clear_caches()
        monkeypatch.setattr(places, "LOGITS", limit)
        found.append(list(score_tokens(pair, [(p, p) for p in prompts], completions, [0.0, 0.7, 1.0], 8)))
    jax.clear_caches()
    for one, other in zip(*found, strict=True):
        assert one.tokens == other.tokens
        for name in ("model_logprobs", "logprobs", "kl_to_reference", "log_normalizers"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=2e-5, err_msg=name)
        # The ends are the models themselves.
        np.testing.assert_array_equal(one.logprobs[0], one.model_logprobs[:, 0])
        np.testing.assert_array_equal(one.logprobs[2], one.model_logprobs[:, 1])


def test_memory_does_not_grow_with_the_logits():
    config = DecoderConfig(
        vocab_size=VOCAB, width=32, mlp_width=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16,
        max_positions=4096,
    )  # fmt: skip
    params = models.param_shapes(config)

    def temporary(length):
        batch = make_batch([[1] * 16] * 8, [[5] * (length - 16)] * 8, 8, tight=True, bucket=padded_length)
        lowered = score_batch.lower((config,) * 2, (params,) * 2, (batch,) * 2, strength_weights([[0.5]] * 3))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(256), temporary(1024)
    logits = 4 * 8 * VOCAB
    # Of both models, the mixture and what is made of it, at the places that are read at once.
    assert short < 8 * 4 * places.LOGITS
    # And of all others nothing: not a twentieth of a single model's logits.
    assert long - short < (1024 - 256) * logits / 20
