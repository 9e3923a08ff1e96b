"""Our forward passes against transformers' on torch, through the files on disk."""

import copy
import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import generate, load_policy, models, save_policy, score
from dera_jax.data.tokens import encode_prompt
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.trees import flatten
from dera_jax.policies.policy import with_params
from dera_jax.policies.ropes import read_rope

torch = pytest.importorskip("torch")
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

VOCAB = 512
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCAB, "n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 8,
    "n_positions": 256, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500.0
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
NEOX = {"model_type": "gpt_neox", "num_key_value_heads": None}
GEMMA2 = {
    "model_type": "gemma2", "num_hidden_layers": 3, "head_dim": 12, "query_pre_attn_scalar": 7,
    "sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 12, "query_pre_attn_scalar": 7,
    "sliding_window": 16, "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_theta": 500.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
    },
}  # fmt: skip
SHAPES = {
    "llama": {},
    "llama, as many key-value heads": {"num_key_value_heads": 8},
    "llama, one key-value head": {"num_key_value_heads": 1},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, wide heads": {"head_dim": 24},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, other settings": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2},
    "llama, theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama, llama3 rope": {"rope_parameters": LLAMA3},
    "llama, linear rope": {"rope_parameters": LINEAR},
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 12},
    "mistral, no window": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, yarn rope": {"model_type": "qwen2", "rope_parameters": YARN},
    "qwen2, windows": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "attention_bias": True},
    "qwen3, tied": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "olmo2, tied": {"model_type": "olmo2", "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 12, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gemma2": GEMMA2,
    "gemma2, tied": GEMMA2 | {"tie_word_embeddings": True},
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gpt2, untied": GPT2 | {"tie_word_embeddings": False, "scale_attn_weights": False},
    "gpt_neox": NEOX,
    "gpt_neox, one after the other": NEOX
    | {"use_parallel_residual": False, "tie_word_embeddings": True, "rotary_pct": 0.5, "attention_bias": False},
}  # fmt: skip
"""Settings that differ from `BASE`, a Llama."""
FAMILIES = [name for name in SHAPES if "," not in name or "llama3" in name or "yarn" in name]
SOME = pytest.mark.parametrize("case", FAMILIES, indirect=True)
"""Where the others would add time and no news."""
ALL = pytest.mark.parametrize(
    "case",
    [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES],
    indirect=True,
)
"""Where the others add time and little news."""
PROMPTS = [
    "Lily",
    "Lily was sad, so her mom went to the",
    "Tom and his mom went",
]
LENGTHS = (100, 41, 3)
"""Of the rows of a batch; the longest passes the original context of 32 three times over, and windows of 16."""


def random_model(settings: dict, seed: int = 0, gain: float = 1.5):
    """Returns a model on torch none of whose parameters has its initial value, norms and biases included.

    Args:
      gain: of the weights within layers; greedy decoding of small ones repeats a token for ever.
    """
    kind = settings.get("model_type", "llama")
    settings = {name: value for name, value in settings.items() if name != "model_type"}
    config = AutoConfig.for_model(kind, **((BASE if kind != "gpt2" else {}) | settings))
    # The other implementations of attention leave soft-caps out.
    attention = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    model = AutoModelForCausalLM.from_config(config, **attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            norm = "norm" in name or "ln_" in name
            one = name.endswith("weight") and not kind.startswith("gemma")
            size = gain if re.search("attn|attention|mlp|wpe", name) else 1.0
            value.copy_(one + 0.3 * noise if norm else size * noise / value.shape[-1] ** 0.5)
    return model


def save(model, folder, toy):
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(toy / name, folder / name)
    return folder


def in_float64(model):
    """Returns the model computing in float64; its norms by themselves go through float32."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if type(module).__name__.endswith("RMSNorm"):
            offset = type(module).__name__.startswith("Gemma")
            epsilon = module.eps if offset else module.variance_epsilon
            module.forward = lambda x, m=module, o=offset, e=epsilon: (
                (m.weight + o) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e)
            )
    return exact


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory, toy):
    """A model on torch and the policy read from its files."""
    model = random_model(SHAPES[request.param])
    folder = save(model, tmp_path_factory.mktemp("model"), toy)
    return model, load_policy(str(folder))


def padded(lengths=LENGTHS, seed=1):
    """Returns random tokens with padding on the left, and the mask of real ones."""
    mask = np.arange(max(lengths)) >= max(lengths) - np.array(lengths)[:, None]
    tokens = np.random.default_rng(seed).integers(VOCAB, size=mask.shape)
    return np.where(mask, tokens, 0).astype(np.int32), mask


def torch_logits(model, tokens, mask):
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions),
        ).logits


def exact_logits(model, tokens, mask):
    """Returns the logits after the real tokens in float64, each row by itself and without padding."""
    exact = in_float64(model)
    rows = [row[real][None] for row, real in zip(tokens, mask, strict=True)]
    return np.concatenate([torch_logits(exact, row, row >= 0)[0].numpy() for row in rows])


def our_logits(policy, tokens, mask, last=None):
    forward = jax.jit(lambda p, t, m: models.bind(policy.config, p).forward(t, m, last))
    return forward(policy.params, tokens, mask)


def test_logits_equal_those_of_torch(case):
    model, policy = case
    tokens, mask = padded()
    ours = np.asarray(our_logits(policy, tokens, mask))[mask]
    theirs = torch_logits(model, tokens, mask).numpy()[mask]
    exact = exact_logits(model, tokens, mask)
    assert theirs.std() > 0.5
    error, own_error = abs(ours - exact).max(), abs(theirs - exact).max()
    apart = abs(ours - theirs).max()
    print(f"largest error of logits: ours {error:.1e}, torch's {own_error:.1e}; {apart:.1e} apart")
    assert apart <= 5e-5
    assert error <= 3 * own_error + 1e-6


@SOME
def test_padding_changes_nothing_on_either_side(case):
    _, policy = case
    tokens, mask = padded()
    row, length = 1, LENGTHS[1]
    alone = tokens[row : row + 1, -length:]
    expected = our_logits(policy, alone, np.ones_like(alone, bool))[0]
    left = our_logits(policy, tokens, mask)[row, -length:]
    # Queries are read in blocks, whose borders padding moves: both round, each by some 1e-5.
    np.testing.assert_allclose(left, expected, atol=5e-5)
    behind = np.pad(alone, ((0, 0), (0, 5)), constant_values=7)
    right = our_logits(policy, behind, np.arange(length + 5)[None] < length)[0, :length]
    np.testing.assert_allclose(right, expected, atol=5e-5)


@SOME
def test_the_last_logits_are_those_of_all(case):
    _, policy = case
    tokens, mask = padded()
    last = our_logits(policy, tokens, mask, 3)
    np.testing.assert_allclose(last, our_logits(policy, tokens, mask)[:, -3:], atol=5e-5)


@ALL
def test_cached_steps_equal_the_forward_pass(case):
    _, policy = case
    tokens, mask = padded((60, 45, 33))
    prompt = 32
    expected = our_logits(policy, tokens, mask)

    @jax.jit
    def steps(params, tokens, mask):
        model = models.bind(policy.config, params)
        cache = models.grow_cache(
            model.prefill(tokens[:, :prompt], mask[:, :prompt]),
            tokens.shape[1] - prompt + 4,
            policy.config.windows,
        )
        fed = tokens.T[prompt:], (mask.cumsum(-1) - 1).T[prompt:]
        # As the decode loop does it: a few tokens apart from the cache, which then takes them in.
        pieces = []
        for start in range(0, len(fed[0]), 12):
            piece = tuple(each[start : start + 12] for each in fed)

            def step(recent, one, cache=cache):
                logits, recent = model.step(*one, cache, recent)
                return recent, logits

            recent, logits = jax.lax.scan(step, models.no_recent(cache, len(piece[0])), piece)
            cache = models.store_recent(cache, recent)
            pieces.append(logits)
        return jnp.concatenate(pieces).swapaxes(0, 1)

    # Caches are read in blocks of slots, the whole text is not: each sums in its own order.
    np.testing.assert_allclose(steps(policy.params, tokens, mask), expected[:, prompt:], atol=1e-4)


def greedy_on_torch(model, policy, steps):
    encoded = [encode_prompt(policy.tokenizer, text) for text in PROMPTS]
    longest = max(map(len, encoded))
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in encoded])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded])
    made = model.generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=steps, eos_token_id=None, pad_token_id=0
    )
    return made[:, longest:].tolist()


# A tied GPT-2 of random weights repeats one token, whatever is cached.
@pytest.mark.parametrize(
    "case", [name if name != "gpt2" else "gpt2, untied" for name in FAMILIES], indirect=True
)
def test_greedy_tokens_equal_those_of_torch(case):
    """Through the whole loop, with one model and no strength; llama3 passes its original context."""
    model, policy = case
    theirs = greedy_on_torch(model, policy, 32)
    assert len({token for row in theirs for token in row}) > 5
    endless = replace(policy, eos_ids=())
    ours = generate((endless,), PROMPTS, (), temperature=0.0, max_new_tokens=32, rows=4)
    assert [completion.tokens for completion in ours] == theirs


@SOME
def test_scores_equal_those_of_torch(case):
    """Given completions of several lengths, through prompts as texts."""
    model, policy = case
    completions = [ids.tolist() for ids in np.split(np.arange(3, 63), [5, 22])]
    found = score((policy,), PROMPTS, completions, [()])
    for text, ids, scored in zip(PROMPTS, completions, found, strict=True):
        prompt = encode_prompt(policy.tokenizer, text)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(ids)), ids]
        np.testing.assert_allclose(scored.model_logprobs[:, 0], expected.numpy(), atol=1e-4)


def test_a_model_mixed_with_itself_is_itself(tmp_path, toy):
    model = random_model(SHAPES["llama"])
    policy = replace(load_policy(str(save(model, tmp_path, toy))), eos_ids=())
    ours = generate((policy, policy), PROMPTS, 0.7, temperature=0.0, max_new_tokens=32, rows=4)
    assert [completion.tokens for completion in ours] == greedy_on_torch(model, policy, 32)


LONG = {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "default", "rope_theta": 1_000_000.0},
        LLAMA3 | LONG | {"rope_theta": 500_000.0},
        LLAMA3 | LONG | {"rope_theta": 500_000.0, "factor": 32.0},
        LINEAR | {"factor": 3.0},
        # As Qwen2.5's page has it for long contexts, and with everything said.
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
        YARN | LONG | {"factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.3},
        YARN | LONG | {"mscale": 0.7, "mscale_all_dim": 1.4, "truncate": False},
    ],
)
def test_rotary_frequencies_of_long_contexts(rope):
    """A relative error of 1e-7 is an angle of 0.01 at the end of Llama 3.1's context."""
    settings = LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=rope
    )
    theirs = LlamaRotaryEmbedding(settings)
    ours = read_rope(settings.rope_parameters)
    frequencies, expected = ours.frequencies(128), theirs.inv_freq.numpy()
    print(f"largest relative difference of frequencies: {abs(frequencies / expected - 1).max():.1e}")
    np.testing.assert_allclose(frequencies, expected, rtol=4e-7)
    assert np.mean(frequencies == expected) > 0.6
    assert ours.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("shape", ["llama", "llama, llama3 rope"])
def test_settings_as_the_hub_has_them(shape, tmp_path, toy):
    """Before transformers 5, rope was two settings, and what had its default was often left out."""
    new = save(random_model(SHAPES[shape]), tmp_path / "new", toy)
    old = shutil.copytree(new, tmp_path / "old")
    raw = json.loads((new / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["torch_dtype"] = raw.pop("dtype")
    for name in ("head_dim", "attention_bias", "mlp_bias", "pretraining_tp", "hidden_act"):
        del raw[name]
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope if "llama3" in shape else None
    (old / "config.json").write_text(json.dumps(raw))
    policy = load_policy(str(old))
    assert policy.config == load_policy(str(new)).config
    # Saved under another type, both loaders go by it.
    save_policy(load_policy(str(old), "bfloat16"), tmp_path / "saved")
    assert load_policy(str(tmp_path / "saved"), as_stored=True).config == replace(
        policy.config, dtype="bfloat16"
    )
    assert "torch_dtype" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_float32_is_float32_on_accelerators(tied):
    """They round the factors of a matrix product to fewer bits unless each product says otherwise."""
    config = DecoderConfig(512, 64, 96, 2, 8, 2, 8, 256, tie_embeddings=tied)
    tokens = np.zeros((1, 4), np.int32)
    forward = jax.jit(lambda p, t: models.bind(config, p).forward(t, t == t))
    lowered = forward.lower(models.init_params(config, 0), tokens).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    # Both layers are one function, which is traced once.
    assert len(products) == 9 + 1
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("name", [*FAMILIES, "llama, tied"])
def test_bfloat16_loses_no_more_than_on_torch(name, tmp_path, toy):
    model = random_model(SHAPES[name]).bfloat16()
    folder = str(save(model, tmp_path, toy))
    policy = load_policy(folder, "bfloat16")
    assert policy.config.dtype == policy.stored_dtype == "bfloat16"
    assert {str(value.dtype) for value in flatten(policy.params).values()} == {"bfloat16"}
    tokens, mask = padded()
    ours = our_logits(policy, tokens, mask)
    assert ours.dtype == jnp.float32
    # Their last product is not rounded to bfloat16 on its way.
    assert np.mean(ours != ours.astype(jnp.bfloat16)) > 0.9
    exact = np.asarray(our_logits(load_policy(folder, "float32"), tokens, mask))[mask]
    error = abs(np.asarray(ours)[mask] - exact).mean()
    own_error = abs(torch_logits(model, tokens, mask).float().numpy()[mask] - exact).mean()
    print(f"mean error of logits in bfloat16: ours {error:.4f}, torch's {own_error:.4f}")
    assert error <= 1.05 * own_error


@ALL
def test_what_we_save_transformers_loads(case, tmp_path):
    model, policy = case
    save_policy(policy, tmp_path / "same", {"beta": 0.1})
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "same", output_loading_info=True)
    assert not any(info.values()), info
    weights = model.state_dict()
    assert again.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())

    # And not because the files were there before.
    changed = with_params(policy, jax.tree.map(lambda a: 1.1 * a, policy.params))
    save_policy(changed, tmp_path / "same", {"beta": 0.2})
    tokens, mask = padded()
    theirs = torch_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "same"), tokens, mask).numpy()
    ours = np.asarray(our_logits(changed, tokens, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=2e-4)
    assert abs(ours - our_logits(policy, tokens, mask)).max() > 0.1
    loaded = load_policy(str(tmp_path / "same"))
    assert loaded.beta == 0.2 and loaded.config == policy.config
    for name, value in flatten(loaded.params).items():
        np.testing.assert_array_equal(value, flatten(changed.params)[name])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layers", 0, "num_layers: expected a whole number, at least 1, got 0"),
        ("num_kv_heads", 3, r"num_kv_heads: expected a divisor of num_heads \(8\), got 3"),
        ("activation", "selu", "activation: expected one of silu, .* got 'selu'"),
    ],
)
def test_impossible_shapes_are_refused(field, value, message):
    config = DecoderConfig(512, 64, 96, 2, 8, 2, 8, 256)
    with pytest.raises(ValueError, match=message):
        replace(config, **{field: value})
