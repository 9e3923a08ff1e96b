"""Settings of families against transformers: rotary frequencies, old and new names, impossible shapes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from dera_jax import load_policy, save_policy
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.policies.ropes import read_rope
from tests.support.shapes import LINEAR, LLAMA3, SHAPES, YARN
from tests.support.torch_models import random_model, save

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

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
