"""T5 against transformers' on torch, through the files on disk."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policy, models, save_policy
from dera_jax.data.batches import make_batch
from dera_jax.models.t5 import distance_buckets
from dera_jax.models.t5_config import T5Config
from dera_jax.models.trees import flatten
from dera_jax.policies.policy import with_params
from dera_jax.scoring.logprobs import completion_logprobs
from tests.support.t5_models import (
    SHAPES,
    VOCAB,
    assert_close,
    in_float64,
    one_thread,  # noqa: F401 (pytest looks for it here)
    our_logits,
    random_batch,
    random_model,
    save,
    torch_logits,
)

torch = pytest.importorskip("torch")
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402


@pytest.fixture(scope="module", params=[name for name in SHAPES if name != "mt5"])
def case(request, tmp_path_factory):
    """A model on torch and the policy read from its files."""
    model = random_model(SHAPES[request.param])
    return model, load_policy(str(save(model, tmp_path_factory.mktemp("model"))))


@pytest.mark.parametrize("case", SHAPES, indirect=True, scope="module")
def test_logits_equal_those_of_torch(case):
    model, policy = case
    batch = random_batch()
    real = batch.completion_mask
    ours = np.asarray(our_logits(policy, batch))[real]
    theirs, exact = (torch_logits(m, batch).numpy()[real] for m in (model, in_float64(model)))
    assert theirs.std() > 0.5
    error, own_error = abs(ours - exact).max(), abs(theirs - exact).max()
    print(
        f"largest error of logits: ours {error:.1e}, torch's {own_error:.1e}; {abs(ours - theirs).max():.1e} apart"
    )
    assert_close(ours, theirs)
    assert error <= 2 * own_error + 1e-7


def test_logprobs_equal_those_of_torch(case):
    model, policy = case
    batch = random_batch()
    ours = jax.jit(completion_logprobs, static_argnums=0)(policy.config, policy.params, batch)
    chosen = torch.tensor(batch.completions).long()[..., None]
    theirs = torch_logits(model, batch).log_softmax(-1).gather(-1, chosen)[..., 0].numpy()
    assert_close(ours, np.where(batch.completion_mask, theirs, 0.0))


@pytest.mark.parametrize("case", ["v1.0"], indirect=True, scope="module")
def test_a_row_is_the_same_alone(case):
    """Other padding of the prompt, none of the completion."""
    _, policy = case
    ids = np.random.default_rng(2).integers(VOCAB, size=60).tolist()
    prompt, completion = ids[:20], ids[20:]
    together = our_logits(policy, make_batch([prompt, ids * 2], [completion, ids]))[0, : len(completion)]
    assert_close(our_logits(policy, make_batch([prompt], [completion]))[0, : len(completion)], together)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("count", "far"), [(32, 128), (8, 20), (16, 64), (32, 64), (12, 100), (64, 256)])
def test_buckets_equal_those_of_torch(count, far, causal):
    theirs = T5Attention._relative_position_bucket(torch.arange(-far - 5, far + 6), not causal, count, far)
    np.testing.assert_array_equal(distance_buckets(count, far, causal), theirs[5:-5])
    # Farther is no different.
    assert len(set(theirs[:6].tolist())) == len(set(theirs[-6:].tolist())) == 1


@partial(jax.jit, static_argnames="config")
def prefilled(config, params, tokens, mask):
    """Returns the cache of prompts, with room."""
    return models.grow_cache(models.bind(config, params).prefill(tokens, mask), 45, config.windows)


@partial(jax.jit, static_argnames="config")
def stepped(config, params, token, cache, recent):
    return models.bind(config, params).step(token, jnp.zeros_like(token), cache, recent)


def step(config, params, token, cache, recent=None):
    """Returns logits, cache and recent after one more token; the cache takes in every fifth and those before."""
    recent = models.no_recent(cache, 5) if recent is None else recent
    logits, recent = stepped(config, params, token, cache, recent)
    full = recent.count == 5
    return logits, models.store_recent(cache, recent) if full else cache, None if full else recent


def test_cached_steps_equal_teacher_forcing(case):
    """Row by row at places of their own: one is given to another prompt while the others go on."""
    _, policy = case
    batch = random_batch()
    start = np.full((3, 1), policy.config.start_token, np.int32)
    fed = np.concatenate([start, batch.completions], axis=1)
    expected = our_logits(policy, batch)
    before = batch.mask.shape[1] - batch.completion_mask.shape[1]
    config, params = policy.config, policy.params
    cache = fresh = prefilled(config, params, batch.tokens[:, :before], batch.mask[:, :before])
    recent = None
    for position in range(20):
        logits, cache, recent = step(config, params, fed[:, position], cache, recent)
        assert_close(logits, expected[:, position])
    cache = jax.tree.map(lambda now, then: now.at[1].set(then[2]), cache, fresh)
    for position in range(13):
        token = np.array([fed[0, position + 20], fed[2, position], fed[2, position + 20]])
        logits, cache, recent = step(config, params, token, cache, recent)
        assert_close(logits[::2], expected[::2, position + 20])
        assert_close(logits[1], expected[2, position])


def test_greedy_tokens_equal_those_of_torch(case):
    model, policy = case
    batch = random_batch()
    before = batch.mask.shape[1] - batch.completion_mask.shape[1]
    tokens, mask = batch.tokens[:, :before], batch.mask[:, :before]
    theirs = model.generate(
        torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(), do_sample=False,
        max_new_tokens=32, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip

    cache = prefilled(policy.config, policy.params, tokens, mask)
    recent, token, ours = None, np.full(3, policy.config.start_token, np.int32), []
    for _ in range(32):
        logits, cache, recent = step(policy.config, policy.params, token, cache, recent)
        token = np.asarray(logits.argmax(-1))
        ours.append(token)
    np.testing.assert_array_equal(np.stack(ours, axis=1), theirs[:, 1:])
    assert theirs.unique().numel() > 10


def test_what_we_save_transformers_loads(case, tmp_path):
    model, policy = case
    save_policy(policy, tmp_path / "same")
    again, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "same", output_loading_info=True)
    assert not any(info.values()), info
    weights = model.state_dict()
    assert again.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())

    # And not because the files were there before.
    changed = with_params(policy, jax.tree.map(lambda a: 1.1 * a, policy.params))
    save_policy(changed, tmp_path / "changed")
    batch = random_batch()
    theirs = torch_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "changed"), batch).numpy()
    ours = np.asarray(our_logits(changed, batch))
    real = batch.completion_mask
    assert_close(ours[real], theirs[real], 5e-5)
    assert abs(ours - our_logits(policy, batch)).max() > 0.1
    loaded = load_policy(str(tmp_path / "changed"))
    assert loaded.config == policy.config
    for name, value in flatten(loaded.params).items():
        np.testing.assert_array_equal(value, flatten(changed.params)[name])


@pytest.mark.parametrize("case", ["v1.1"], indirect=True, scope="module")
@pytest.mark.parametrize(("kind", "dtype", "bound"), [("int8", "int8", 0.04), ("nf4", "uint4", 0.4)])
def test_quantized(kind, dtype, bound, case):
    """Every linear map but the head; logits are off by about what the weights are (1 % and 12 %)."""
    _, policy = case
    quantized = load_policy(policy.folder, quantize=kind)
    full = {name: str(value.dtype) for name, value in flatten(quantized.params).items()}
    layers = [name for name in full if ".blocks." in name and name.endswith(".kernel")]
    maps = 6 + policy.config.gated
    assert len(layers) == 3 * maps + 2 * (maps + 4)
    assert {full.pop(name) for name in layers} == {dtype}
    assert set(full.values()) == {"float32"}
    batch = random_batch()
    exact = np.asarray(our_logits(policy, batch))
    error = abs(np.asarray(our_logits(quantized, batch)) - exact).mean() / abs(exact).mean()
    print(f"relative error of logits: {error:.4f}")
    assert bound / 10 < error < bound


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_reward_head_reads(side, tmp_path):
    """Torch's classifier: its decoder reads the same text, its head what comes out at EOS."""
    classifier = random_model({"num_labels": 1}, AutoModelForSequenceClassification)
    folder = save(random_model({}), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    own = {n.removeprefix("transformer."): w.numpy() for n, w in classifier.state_dict().items()}
    save_file({name: own[name] for name in tensors}, folder / "model.safetensors")
    policy = load_policy(str(folder))
    rng = np.random.default_rng(3)
    texts = [[*rng.integers(2, VOCAB, size=n).tolist(), 1] for n in (29, 11)]
    padding = [((30 - len(t)), 0)[:: 1 if side == "left" else -1] for t in texts]
    tokens = np.stack([np.pad(t, p) for t, p in zip(texts, padding, strict=True)])
    mask = np.stack([np.pad(np.ones(len(t), bool), p) for t, p in zip(texts, padding, strict=True)])
    hidden = jax.jit(lambda p, t, m: models.bind(policy.config, p).hidden(t, m))
    at_eos = np.asarray(hidden(policy.params, tokens, mask))[tokens == 1]
    with torch.no_grad():
        ours = classifier.classification_head(torch.tensor(at_eos))
        theirs = torch.cat([classifier(torch.tensor([text])).logits for text in texts])
    assert theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_float32_is_float32_on_accelerators():
    """They round the factors of a matrix product to fewer bits unless each product says otherwise."""
    for tied in (False, True):
        config = T5Config(VOCAB, 32, 48, 3, 2, 4, 6, gated=True, tie_embeddings=tied)
        tokens = np.zeros((1, 8), np.int32)
        logits = jax.jit(lambda p, t, c=config: models.bind(c, p).completion_logits(t, t == t, 4))
        lowered = logits.lower(models.init_params(config, 0), tokens).as_text()
        products = [line for line in lowered.splitlines() if "dot_general" in line]
        # The layers of a stack are one function, traced once; keys and values of the encoder's text come before.
        assert len(products) == 9 + 13 + 3 * 2 + 1
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_encoder_layers", 0, "num_encoder_layers: expected a whole number, at least 1, got 0"),
        ("buckets", 2, "buckets: expected a whole number, at least 4, got 2"),
        ("max_distance", 16, "max_distance: expected a whole number, at least 17, got 16"),
        ("activation", "selu", "activation: expected one of silu, .* got 'selu'"),
    ],
)
def test_impossible_shapes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(T5Config(VOCAB, 32, 48, 3, 2, 4, 6), **{field: value})
