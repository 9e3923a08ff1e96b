"""T5 against transformers' on torch, through the files on disk."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policy, models, save_policy
from dera_jax.batches import make_batch
from dera_jax.models.t5 import T5Config, distance_buckets
from dera_jax.policies import with_params
from dera_jax.score import completion_logprobs
from dera_jax.tokenizer import load_tokenizer
from dera_jax.trees import flatten

from .conftest import SHARED

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

TOKENIZER = SHARED / "data" / "t5_tokenizer"
VOCAB = 512
BASE = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20, "decoder_start_token_id": 3, "layer_norm_epsilon": 1e-4,
}  # fmt: skip
V1_1 = {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}
SHAPES = {
    "v1.0": {},
    "v1.0, untied": {"tied": False},
    "v1.1": V1_1 | {"tied": False},
    "v1.1, tied": V1_1,
    "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tied": False},
}
"""Settings that differ from `BASE`; `tied` says whether files hold a head."""
PROMPTS, COMPLETIONS = (70, 41, 3), (40, 23, 33)
"""Lengths of the rows of a batch; most distances are beyond those that have buckets."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For models as small as these, threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(settings: dict, auto=AutoModelForSeq2SeqLM, seed: int = 0):
    """Returns a model on torch none of whose parameters has its initial value."""
    settings = BASE | settings
    tied, kind = settings.pop("tied", True), settings.pop("model_type")
    model = auto.from_config(AutoConfig.for_model(kind, **settings)).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, BASE["d_model"]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            # Logits deviate by about 1, unless they are tied and not scaled.
            scaled = getattr(model.config, "scale_decoder_outputs", False)
            one = "relative" in name or "shared" in name or ("lm_head" in name and scaled)
            width = 1 if one else value.shape[-1] ** 0.5
            value.copy_(1 + 0.3 * noise if "norm" in name else noise / width)
        # Where embedding and head are tied, a token would otherwise be followed by itself.
        last = model.get_decoder().final_layer_norm.weight
        last.copy_((last - 1) / 0.3)
    return model


def save(model, folder):
    model.save_pretrained(folder)
    shutil.copyfile(TOKENIZER / "t5-base-tokenizer.json", folder / "tokenizer.json")
    return folder


def in_float64(model):
    """Returns the model computing in float64; its norms by themselves go through float32."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if type(module).__name__.endswith("T5LayerNorm"):
            module.forward = lambda x, m=module: (
                m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            )
    return exact


def random_batch(prompts=PROMPTS, completions=COMPLETIONS, seed=1):
    """Returns prompts padded on the left with completions padded on the right."""
    ids = np.random.default_rng(seed)
    return make_batch(
        *([ids.integers(VOCAB, size=n).tolist() for n in part] for part in (prompts, completions))
    )


def assert_close(ours, theirs, bound=2e-5):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * max(1.0, np.std(theirs)))


def torch_logits(model, batch, start=BASE["decoder_start_token_id"]):
    count = batch.completion_mask.shape[1]
    completions = torch.tensor(batch.completions).long()
    with torch.no_grad():
        return model(
            torch.tensor(batch.tokens[:, :-count]).long(),
            attention_mask=torch.tensor(batch.mask[:, :-count]).long(),
            decoder_input_ids=torch.nn.functional.pad(completions, (1, -1), value=start),
        ).logits


@partial(jax.jit, static_argnames=("config", "count"))
def jitted_logits(config, params, tokens, mask, count):
    return models.bind(config, params).completion_logits(tokens, mask, count)


def our_logits(policy, batch):
    count = batch.completion_mask.shape[1]
    return jitted_logits(policy.config, policy.params, batch.tokens, batch.mask, count)


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


@pytest.mark.parametrize("shape", SHAPES)
def test_files_as_the_hub_has_them(shape, tmp_path):
    """Before transformers 5 one setting told the head and the scale, and copies of tensors were kept."""
    model = random_model(SHAPES[shape])
    policy = load_policy(str(save(model, tmp_path)))
    raw = json.loads((tmp_path / "config.json").read_text())
    scaled = raw.pop("scale_decoder_outputs", None)
    for name in ("dense_act_fn", "is_gated_act"):
        raw.pop(name)
    raw["tie_word_embeddings"] = bool(scaled)
    if scaled:
        del raw["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = load_file(tmp_path / "model.safetensors")
    old = tensors | {
        f"{stack}.embed_tokens.weight": tensors["shared.weight"] for stack in ("encoder", "decoder")
    }
    old["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.zeros(
        (8, 4), np.float32
    )
    save_file(old, tmp_path / "model.safetensors")
    again = load_policy(str(tmp_path))
    assert again.config == policy.config
    # One of the copies may be the only one.
    save_file({n: t for n, t in old.items() if n != "shared.weight"}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        load_policy(str(tmp_path)).params["embed"]["embedding"], policy.params["embed"]["embedding"]
    )


def test_a_head_equal_to_the_embedding(tmp_path):
    """As early files have it: saved by us, the model computes what it did."""
    model = random_model(SHAPES["v1.0"])
    folder = save(model, tmp_path / "old")
    raw = json.loads((folder / "config.json").read_text())
    del raw["tie_word_embeddings"], raw["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["shared.weight"].copy()}, folder / "model.safetensors")
    save_policy(load_policy(str(folder)), tmp_path / "new")
    batch = random_batch()
    expected = torch_logits(model, batch).numpy()
    theirs = torch_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "new"), batch).numpy()
    assert_close(theirs, expected, 1e-6)
    assert_close(our_logits(load_policy(str(tmp_path / "new")), batch), expected)


@pytest.mark.parametrize(
    ("shape", "dtype"), [("v1.0", "bfloat16"), ("v1.1", "bfloat16"), ("v1.1", "float16")]
)
def test_half_precision_loses_no_more_than_on_torch(shape, dtype, tmp_path):
    """Torch keeps the last map of each feed-forward block in float32 where activations are float16."""
    folder = save(random_model(SHAPES[shape]).to(getattr(torch, dtype)), tmp_path)
    policy = load_policy(str(folder))
    assert policy.config.dtype == dtype
    assert {str(value.dtype) for value in flatten(policy.params).values()} == {dtype}
    batch = random_batch()
    real = batch.completion_mask
    ours = our_logits(policy, batch)
    assert ours.dtype == jnp.float32
    assert np.mean(ours != ours.astype(dtype)) > 0.9
    exact = np.asarray(our_logits(load_policy(str(folder), "float32"), batch))[real]
    theirs = torch_logits(AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype), batch).float().numpy()
    error, own_error = abs(np.asarray(ours)[real] - exact).mean(), abs(theirs[real] - exact).mean()
    print(f"mean error of logits in {dtype}: ours {error:.5f}, torch's {own_error:.5f}")
    assert error <= own_error


def test_float16_does_not_overflow(tmp_path):
    """The sums in the residual stream of T5 grow beyond 65 504."""
    model = random_model(SHAPES["v1.1"])
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            stack.block[-1].layer[-1].DenseReluDense.wo.weight *= 1e5
    folder = str(save(model, tmp_path))
    batch = random_batch()
    exact, ours = (
        np.asarray(our_logits(load_policy(folder, dtype), batch)) for dtype in ("float32", "float16")
    )
    assert abs(ours - exact).mean() < 0.02 * exact.std()


def adapt(folder, out, **settings):
    """Saves a random PEFT adapter of `folder`'s model; returns the model merged with it."""
    peft = pytest.importorskip("peft")
    base = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, **settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(
                    0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    model.save_pretrained(out)
    return model.merge_and_unload().eval()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ("v1.0", {"target_modules": ["q", "v"]}),
        ("v1.1", {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]}),
        ("v1.1", {"target_modules": ["k"], "modules_to_save": ["lm_head"]}),
    ],
)
# PEFT's own, and that transformers calls every T5 tied.
@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing", "ignore:.*save_embedding_layers", "ignore:.*tie"
)
def test_an_adapter_changes_what_it_does_on_torch(shape, settings, tmp_path):
    folder = save(random_model(SHAPES[shape]), tmp_path / "base")
    merged = adapt(folder, tmp_path / "adapter", **settings)
    policy = load_policy(f"{folder}+{tmp_path / 'adapter'}")
    batch = random_batch()
    ours, theirs = np.asarray(our_logits(policy, batch)), torch_logits(merged, batch).numpy()
    real = batch.completion_mask
    assert abs(theirs - np.asarray(our_logits(load_policy(str(folder)), batch)))[real].max() > 0.1
    assert_close(ours[real], theirs[real], 5e-5)
    save_policy(policy, tmp_path / "merged")
    again = torch_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged"), batch).numpy()
    assert_close(again[real], theirs[real], 5e-5)


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
        assert len(products) == 2 * 9 + 3 * 15 + 1
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_encoder_layers", 0, "num_encoder_layers: expected a whole number, at least 1, got 0"),
        ("buckets", 2, "buckets: expected a whole number, at least 4, got 2"),
        ("max_distance", 16, "max_distance: expected a whole number, at least 17, got 16"),
        ("activation", "selu", "activation: expected one of silu, relu, gelu, .* got 'selu'"),
    ],
)
def test_impossible_shapes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(T5Config(VOCAB, 32, 48, 3, 2, 4, 6), **{field: value})


@pytest.mark.parametrize("file", [None, "config.json"])
def test_the_tokenizer_gives_the_reference_encodings(file, tmp_path):
    shutil.copyfile(TOKENIZER / "t5-base-tokenizer.json", tmp_path / "tokenizer.json")
    if file:
        (tmp_path / file).write_text(json.dumps({"model_type": "t5"}))
    tokenizer = load_tokenizer(tmp_path)
    cases = json.loads((TOKENIZER / "t5-base-tests.json").read_text())
    assert len(cases) == 1995
    for text, ids, _ in cases:
        assert tokenizer(text).input_ids == ids
