"""PEFT adapters on a shared base, against PEFT itself and against two full models."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from dera_jax import generate, load_policies, load_policy, save_policy
from dera_jax.models.trees import flatten
from dera_jax.policies.policy import held_bytes
from tests.support.shapes import SHAPES, VOCAB
from tests.support.torch_models import (
    PROMPTS,
    exact_logits,
    our_logits,
    padded,
    random_model,
    save,
    torch_logits,
)

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from transformers import AutoModelForCausalLM  # noqa: E402

# PEFT's own, and what it says where a tied embedding or head is changed: that is what is tested.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{said}")
    for said in ("is_gradient_checkpointing", "tie", "save_embedding_layers", "tied")
]

QV = {"target_modules": ["q_proj", "v_proj"]}
KINDS = {
    "attention": ("llama", QV),
    "all linear maps": ("mistral", {"target_modules": "all-linear"}),
    "rank and alpha by pattern": (
        "qwen2",
        QV | {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    ),
    "rank stabilization": ("olmo2", QV | {"use_rslora": True}),
    "biases below": ("llama, biases", {"target_modules": ["o_proj", "down_proj"]}),
    "whole modules": ("llama", QV | {"modules_to_save": ["norm", "lm_head"]}),
    "a head of its own": ("llama, tied", QV | {"modules_to_save": ["lm_head"]}),
    "an embedding of its own": ("llama, tied", QV | {"modules_to_save": ["embed_tokens"]}),
    "low-rank head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "gemma2": ("gemma2", {"target_modules": "all-linear"}),
    "gemma3_text": ("gemma3_text", QV),
    "qwen3": ("qwen3", QV),
    "gemma": ("gemma", QV),
    "query, key and value in one": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "query, key and value by head": ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
}


def make_base(name, folder, toy):
    return save(random_model(SHAPES[name], gain=0.7), folder, toy)


def make_adapter(base, folder, settings, seed=1):
    """Writes an adapter with random matrices; returns the model with it, merged by PEFT in float64.

    Merged and run in float32, the models differ by the rounding of both; so only ours is counted.
    """
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(0.3 * torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5)
    adapted.save_pretrained(folder)
    return adapted.double().merge_and_unload().eval()


@pytest.fixture
def base(tmp_path, toy):
    return make_base("llama", tmp_path / "base", toy)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_the_merged_model(kind, tmp_path, toy):
    name, settings = KINDS[kind]
    base = make_base(name, tmp_path / "base", toy)
    merged = make_adapter(base, tmp_path / "adapter", settings)
    plain, policy = load_policies(base, f"{base}+{tmp_path / 'adapter'}")
    tokens, mask = padded()
    ours = np.asarray(our_logits(policy, tokens, mask))[mask]
    theirs = exact_logits(merged, tokens, mask)
    apart = abs(ours - theirs).max()
    print(f"{kind}: {apart:.1e} apart")
    # Rounding, which is another on every processor; the adapter moves the logits a thousand times as far.
    assert apart <= 3e-5
    assert abs(ours - np.asarray(our_logits(plain, tokens, mask))[mask]).max() > 0.05
    # The base is there once.
    shared = {id(a) for a in jax.tree.leaves(plain.params)} & {id(a) for a in jax.tree.leaves(policy.params)}
    assert len(shared) >= len(jax.tree.leaves(plain.params)) - 6

    save_policy(policy, tmp_path / "saved")
    again = torch_logits(
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager"), tokens, mask
    )
    np.testing.assert_allclose(again.numpy()[mask], theirs, atol=5e-5)


@pytest.mark.slow
def test_two_adapters_on_one_base_equal_two_full_models(base, tmp_path):
    adapters = [tmp_path / "sft", tmp_path / "dpo"]
    for seed, adapter in enumerate(adapters):
        make_adapter(base, adapter, QV, seed)
    pair = load_policies(f"{base}+{adapters[0]}", f"{base}+{adapters[1]}")
    full = []
    for policy, name in zip(pair, ("sft_full", "dpo_full"), strict=True):
        save_policy(policy, tmp_path / name)
        full.append(load_policy(tmp_path / name))
    pair, full = ([replace(p, eos_ids=()) for p in both] for both in (pair, full))
    settings = {"temperature": 0.0, "max_new_tokens": 24, "rows": 4}
    for strength in (0.0, 0.5, 2.0):
        ours, theirs = (generate(both, PROMPTS, strength, **settings) for both in (pair, full))
        assert [c.tokens for c in ours] == [c.tokens for c in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    low_rank = sum(a.nbytes for path, a in flatten(pair[0].params).items() if "lora" in path)
    base_bytes = held_bytes([load_policy(base)])
    assert held_bytes(pair) == base_bytes + 2 * low_rank
    assert held_bytes(full) == 2 * base_bytes


def test_adapters_on_a_quantized_base(base, tmp_path):
    make_adapter(base, tmp_path / "adapter", QV | {"modules_to_save": ["norm"]})
    name = f"{base}+{tmp_path / 'adapter'}"
    exact, quantized = load_policy(name), load_policy(name, quantize="int8")
    tokens, mask = padded()
    error = abs(our_logits(exact, tokens, mask) - our_logits(quantized, tokens, mask))[mask]
    assert 1e-4 < error.mean() < 0.05


def test_bfloat16(base, tmp_path):
    make_adapter(base, tmp_path / "adapter", QV)
    policy = load_policy(f"{base}+{tmp_path / 'adapter'}", "bfloat16")
    assert {str(a.dtype) for a in jax.tree.leaves(policy.params)} == {"bfloat16"}


def refusal(model):
    with pytest.raises(ValueError) as caught:
        load_policy(model)
    text = str(caught.value)
    assert "\n" not in text
    return text


def name_base(adapter, name):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))


def test_an_adapter_for_another_base(base, tmp_path, toy):
    other = make_base("gpt2", tmp_path / "other", toy)
    make_adapter(other, tmp_path / "adapter", {"target_modules": ["c_attn"], "fan_in_fan_out": True})
    found = refusal(f"{base}+{tmp_path / 'adapter'}")
    assert f"was trained on {other}, here it stands on {base}" in found
    path = tmp_path / "adapter" / "adapter_config.json"
    assert found.endswith(f"change base_model_name_or_path in {path}")
    # Where the adapter names what is not here, its tensors tell.
    name_base(tmp_path / "adapter", "org/gpt")
    found = refusal(f"{base}+{tmp_path / 'adapter'}")
    assert found == (
        f"{tmp_path / 'adapter'}: the adapter was trained on org/gpt (adapter_config.json), not on {base}, "
        "which has no transformer.h.0.attn.c_attn"
    )
    wide = make_base("llama, wide heads", tmp_path / "wide", toy)
    make_adapter(wide, tmp_path / "adapter2", QV)
    name_base(tmp_path / "adapter2", "org/wide")
    found = refusal(f"{base}+{tmp_path / 'adapter2'}")
    assert "q_proj.lora_B.weight: expected shape (64, 4)" in found and "found (192, 4)" in found


def test_an_adapter_for_another_base_of_the_same_shape(base, tmp_path, toy):
    make_adapter(base, tmp_path / "adapter", QV)
    other = save(random_model(SHAPES["llama"], seed=5), tmp_path / "other", toy)
    found = refusal(f"{other}+{tmp_path / 'adapter'}")
    assert f"the adapter was trained on {base}, here it stands on {other}" in found
    # The same model elsewhere is the same.
    moved = shutil.copytree(base, tmp_path / "moved")
    assert load_policy(f"{moved}+{tmp_path / 'adapter'}").config.adapters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected LORA, found IA3"),
        ({"use_dora": True}, "use_dora: expected False, found True; merge it with PEFT first"),
        ({"bias": "all"}, "bias: expected none, found all"),
    ],
)
def test_other_kinds_of_adapters(fields, message, base, tmp_path):
    make_adapter(base, tmp_path / "adapter", QV)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert message in refusal(f"{base}+{tmp_path / 'adapter'}")


def test_broken_adapters(base, tmp_path):
    adapter = tmp_path / "adapter"
    make_adapter(base, adapter, QV)
    weights = adapter / "adapter_model.safetensors"
    cut = shutil.copytree(adapter, tmp_path / "cut")
    (cut / weights.name).write_bytes(weights.read_bytes()[:-10])
    assert "not a whole safetensors file" in refusal(f"{base}+{cut}")
    weights.rename(adapter / "adapter_model.bin")
    assert "pickles are not read" in refusal(f"{base}+{adapter}")
    (adapter / "adapter_model.bin").unlink()
    assert refusal(f"{base}+{adapter}") == f"{weights}: no such file"
    assert refusal(f"{base}+{base}") == f"{base}: expected a PEFT adapter, found no adapter_config.json"
    trained_on = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    written = f"found a PEFT adapter; write {trained_on or 'BASE'}+{adapter}"
    assert refusal(f"{adapter}").endswith(written)
    grid = f"found folders of models (3: adapter, base, cut); write {adapter}, or another of them"
    assert refusal(f"{tmp_path}").endswith(grid)
    assert refusal(f"{base}+") == f"{base}+: expected BASE+ADAPTER"


def test_a_folder_with_a_plus_in_its_name(base, tmp_path):
    shutil.copytree(base, tmp_path / "a+b")
    assert load_policy(tmp_path / "a+b").config.vocab_size == VOCAB
