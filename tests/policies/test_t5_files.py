"""T5 as files have it: old and new settings, half precision, adapters, the tokenizer."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policy, save_policy
from dera_jax.models.trees import flatten
from dera_jax.policies.tokenizers import load_tokenizer
from tests.support.t5_models import (
    SHAPES,
    assert_close,
    one_thread,  # noqa: F401 (pytest looks for it here)
    our_logits,
    random_batch,
    random_model,
    save,
    torch_logits,
)

torch = pytest.importorskip("torch")
from transformers import AutoModelForSeq2SeqLM  # noqa: E402


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
    policy = load_policy(str(folder), dtype)
    assert policy.config.dtype == policy.stored_dtype == dtype
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


@pytest.mark.data("t5_tokenizer")
@pytest.mark.parametrize("file", [None, "config.json"])
def test_the_tokenizer_gives_the_reference_encodings(file, data, tmp_path):
    shutil.copyfile(data / "t5_tokenizer/t5-base-tokenizer.json", tmp_path / "tokenizer.json")
    if file:
        (tmp_path / file).write_text(json.dumps({"model_type": "t5"}))
    tokenizer = load_tokenizer(tmp_path)
    cases = json.loads((data / "t5_tokenizer/t5-base-tests.json").read_text())
    assert len(cases) == 1995
    for text, ids, _ in cases:
        assert tokenizer(text).input_ids == ids
