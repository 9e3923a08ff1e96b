"""Caches: prompts read in pieces, windows that are all a layer keeps, keys and values in fewer bits."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.models import caches, decoder
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.rope import Rope
from dera_jax.models.t5_config import T5Config
from dera_jax.scoring.score import score_tokens

TINY = DecoderConfig(
    vocab_size=61, width=32, mlp_width=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=256,
)  # fmt: skip
KINDS = {
    "llama": TINY,
    "mistral": replace(TINY, windows=(7, 7)),
    "gemma2": replace(TINY, windows=(16, 0), attention_softcap=2.0, post_norm=True, norm="rms_unit_offset"),
    "gemma3": replace(TINY, num_layers=3, windows=(5, 5, 0), qk_norm="head", local_rope=Rope(theta=100.0)),
    "qwen3": replace(TINY, qk_norm="head", qkv_bias=True, windows=(0, 40)),
    "gpt2": replace(TINY, num_kv_heads=4, rope=None, norm="layer", gated=False, tie_embeddings=True),
}
LENGTHS = (75, 60, 1, 34)
"""Of the rows' prompts; pieces of 16 then begin with padding, between tokens and everywhere."""


def params_of(config, seed=0):
    """Returns random parameters that make attention matter."""
    return jax.tree.map(lambda a: 1.5 * a if a.ndim == 2 else a, models.init_params(config, seed))


def padded(lengths=LENGTHS, bucket=80, extra=0):
    """Returns left-padded random tokens and, behind them, `extra` more, with the mask of all."""
    mask = np.arange(bucket + extra) >= bucket - np.array(lengths)[:, None]
    tokens = np.random.default_rng(1).integers(1, TINY.vocab_size, size=mask.shape)
    return np.where(mask, tokens, 0).astype(np.int32), mask


@partial(jax.jit, static_argnames=("config", "bucket", "piece", "steps"))
def stepwise(config, params, tokens, mask, bucket, piece, steps=9):
    """Returns the logits after each token behind a prefilled bucket, stored every few `steps`."""
    model = models.bind(config, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "PIECE", piece)
        patch.setattr(decoder, "WHOLE", piece)
        cache = model.prefill(tokens[:, :bucket], mask[:, :bucket])
    cache = models.grow_cache(cache, tokens.shape[1] - bucket, config.windows)
    fed = tokens.T[bucket:], (mask.cumsum(-1) - 1).T[bucket:]
    found = []
    for start in range(0, len(fed[0]), steps):
        some = [each[start : start + steps] for each in fed]

        def step(recent, one, cache=cache):
            logits, recent = model.step(*one, cache, recent)
            return recent, logits

        recent, logits = jax.lax.scan(step, models.no_recent(cache, len(some[0])), some)
        cache = models.store_recent(cache, recent)
        found.append(logits)
    return jnp.concatenate(found).swapaxes(0, 1)


def forward(config, params, tokens, mask):
    return jax.jit(lambda p, t, m: models.bind(config, p).forward(t, m))(params, tokens, mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [512, 16, 25])
def test_pieces_and_rings_give_the_logits_of_the_whole(kind, piece):
    """The forward pass hides what is outside of windows by a mask; 25 does not divide the bucket."""
    config, params = KINDS[kind], params_of(KINDS[kind])
    tokens, mask = padded(extra=26)
    expected = forward(config, params, tokens, mask)[:, 80:]
    found = stepwise(config, params, tokens, mask, 80, piece)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("windows", [(12, 0, 20), (30, 100, 0)])
def test_windows_that_the_prompt_does_not_fill(windows):
    """Stored 16 at a time: more than the smallest window has places for, and over its end."""
    config = replace(TINY, num_layers=3, windows=windows)
    tokens, mask = padded((16, 3), 16, extra=48)
    expected = forward(config, params_of(config), tokens, mask)[:, 16:]
    np.testing.assert_allclose(
        stepwise(config, params_of(config), tokens, mask, 16, 512, 16), expected, atol=1e-4
    )


def shapes_of(config, bucket, new_tokens):
    def made(params):
        tokens = jnp.zeros((2, bucket), jnp.int32)
        cache = models.bind(config, params).prefill(tokens, tokens == 0)
        return models.grow_cache(cache, new_tokens, config.windows)

    return jax.eval_shape(made, models.param_shapes(config))


def test_layers_keep_their_window_only():
    config = replace(TINY, num_layers=4, windows=(8, 0, 40, 100))
    for bucket in (4, 32, 1024):
        cache = shapes_of(config, bucket, 20)
        slots = bucket + 20
        assert [k.shape[2] for k in cache.keys] == [min(w, slots) for w in (8, slots, 40, 100)]
        assert cache.mask.shape == (2, slots)
    every, one = (models.cache_bytes(replace(TINY, windows=w), 2, 4096, 32) for w in ((), (64, 0)))
    assert one < 0.55 * every


def test_bytes_of_caches():
    figures = {
        kind: models.cache_bytes(replace(TINY, kv_cache=kind), 3, 1000, 24)
        for kind in ("auto", "bfloat16", "int8")
    }
    numbers = 3 * 1024 * 2 * 2 * 2 * 8  # rows, slots, layers, keys and values, heads, head_dim
    rest = 3 * 1024 + 3 * 4  # mask, index
    assert figures == {
        "auto": 4 * numbers + rest, "bfloat16": 2 * numbers + rest, "int8": numbers + numbers // 8 * 4 + rest
    }  # fmt: skip


def prefill_temp(config, length):
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)
    prefill = jax.jit(lambda p, t, m: models.bind(config, p).prefill(t, m))
    return prefill.lower(models.param_shapes(config), tokens, mask).compile().memory_analysis()


def test_memory_of_prefill_grows_with_the_prompt_not_its_square():
    config = replace(TINY, max_positions=2**16)
    temp = {length: prefill_temp(config, length).temp_size_in_bytes for length in (4096, 8192, 32_768)}
    scores = {length: config.num_heads * decoder.PIECE * length * 4 for length in temp}
    print("temporary MiB of prefill:", {n: round(b / 2**20) for n, b in temp.items()})
    assert all(temp[length] < 4 * scores[length] for length in temp)
    assert temp[32_768] < 4.4 * temp[8192] < 9.7 * temp[4096]
    # A matrix of all scores would be 64 times those of a piece.
    assert temp[32_768] < config.num_heads * 32_768**2 * 4 / 16


def tiny_policies(pair, windows):
    """Returns the pair with windows in its layers."""
    layers = pair[0].config.num_layers
    own = tuple(windows[layer % len(windows)] for layer in range(layers))
    return tuple(replace(policy, config=replace(policy.config, windows=own)) for policy in pair)


def cells_of(lengths, samples=3):
    rng = np.random.default_rng(0)
    ids = [(1, *rng.integers(3, 500, size=n).tolist()) for n in lengths]
    return [
        Request(EncodedPrompt(Prompt(n, "x"), (each, each)), sample, (0.7,))
        for n, each in enumerate(ids)
        for sample in range(samples)
    ]


@pytest.mark.slow
def test_refilled_rows_with_windows_and_pieces_have_the_figures_of_teacher_forcing(pair, monkeypatch):
    """More cells than rows, prompts of several buckets, windows smaller than prompts and completions."""
    monkeypatch.setattr(decoder, "PIECE", 32)
    monkeypatch.setattr(decoder, "WHOLE", 32)
    device_loop.prefill_prompts.clear_cache()
    policies = tiny_policies(pair, (24, 0))
    config = DecodeConfig(max_new_tokens=40, stop=("e",), seed=4)
    found = list(complete(policies, cells_of((50, 100, 61, 120)), config, 4))
    assert len(found) == 12 and len({len(c.tokens) for c in found}) > 3
    device_loop.prefill_prompts.clear_cache()
    prompts, tokens = zip(*[(c.request.prompt.tokens, c.tokens) for c in found], strict=True)
    for completion, scored in zip(found, score_tokens(policies, prompts, tokens, [0.7], 5), strict=True):
        np.testing.assert_allclose(completion.logprobs, scored.logprobs[0], atol=2e-4)
        np.testing.assert_allclose(completion.model_logprobs, scored.model_logprobs, atol=2e-4)


LIMITS = {"bfloat16": 2e-4, "int8": 1e-3}
"""Nats per token, of the shipped model on text that it does not know."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIMITS)
def test_fewer_bits_change_distributions_little(pair, kind):
    """KL of what a pretrained model says next with a full cache to what it says with a smaller one."""
    policy = pair[0]
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    ids = policy.tokenizer(text * 3).input_ids[:200]
    tokens, mask = np.array([ids], np.int32), np.ones((1, len(ids)), bool)
    found = {
        name: np.asarray(
            stepwise(replace(policy.config, kv_cache=name), policy.params, tokens, mask, 64, 512, 16),
            np.float64,
        )[0]
        for name in ("auto", kind)
    }
    full, small = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in found.values())
    kl = (np.exp(full) * (full - small)).sum(-1)
    print(f"{kind}: KL {kl.mean():.1e} per token, {kl.max():.1e} at most")
    assert 0 < kl.mean() < LIMITS[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_fewer_bits_in_pieces_and_rings(name, kind):
    config, params = KINDS[name], params_of(KINDS[name])
    tokens, mask = padded(extra=26)
    expected = stepwise(config, params, tokens, mask, 80, 16)
    found = stepwise(replace(config, kv_cache=kind), params, tokens, mask, 80, 16)
    error = float(abs(found - expected).mean() / expected.std())
    print(f"{name} {kind}: logits differ by {error:.1e} of their spread")
    assert 0 < error < 0.02


@pytest.mark.parametrize("kind", LIMITS)
def test_fewer_bits_in_encoder_decoders(kind):
    config = T5Config(61, 32, 48, 2, 2, 4, 8, kv_cache=kind)
    params, found = params_of(config), []
    tokens, mask = map(jnp.asarray, padded((20, 5), 20))
    for each in (replace(config, kv_cache="auto"), config):
        model, logits = models.bind(each, params), []
        prefill, step = jax.jit(model.prefill), jax.jit(model.step)
        cache = models.grow_cache(prefill(tokens, mask), 12, each.windows)
        for start in (0, 6):
            recent = models.no_recent(cache, 6)
            for token in range(start, start + 6):
                out, recent = step(jnp.full(2, token), jnp.zeros(2, jnp.int32), cache, recent)
                logits.append(out)
            cache = models.store_recent(cache, recent)
        found.append(jnp.stack(logits))
    error = float(abs(found[1] - found[0]).mean() / found[0].std())
    print(f"T5 {kind}: logits differ by {error:.1e} of their spread")
    assert 0 < error < 0.02


def test_eight_bits_are_as_near_as_eight_bits_can_be():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 16)) * jnp.arange(5)[:, None]
    codes = caches.kept(x, "int8")
    assert codes.codes.dtype == jnp.int8 and codes.scale.shape == (2, 3, 5, 1)
    assert (abs(codes.codes * codes.scale - x) <= 0.5001 * codes.scale).all()
    np.testing.assert_array_equal(abs(codes.codes).max(-1)[..., 1:], 127)


def test_unknown_kinds_are_refused():
    for make in (DecodeConfig, partial(replace, TINY)):
        with pytest.raises(ValueError, match="kv_cache: expected one of auto, bfloat16, int8, got 'int4'"):
            make(kv_cache="int4")
