"""Contexts that were made longer, as configurations say it."""

import json

import numpy as np
import pytest

from dera_jax import load_policy, score
from dera_jax.data.tokens import encode_prompt
from dera_jax.policies import families
from tests.support.shapes import BASE, GEMMA3
from tests.support.torch_models import random_model, save

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM  # noqa: E402

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"type": "linear", "factor": 4.0}
SCALED = {
    # As Qwen2.5's card has it, and the same where somebody raised the other setting too.
    "yarn": ("qwen2", {"max_position_embeddings": 64, "rope_scaling": YARN}, 256),
    "yarn and more": ("qwen2", {"max_position_embeddings": 300, "rope_scaling": YARN}, 300),
    "yarn, without the original": (
        "llama", {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 2.5}}, 160
    ),
    "linear": ("llama", {"max_position_embeddings": 64, "rope_scaling": LINEAR}, 256),
    "linear, with the original": (
        "llama",
        {"max_position_embeddings": 256, "rope_scaling": LINEAR | {"original_max_position_embeddings": 64}},
        256,
    ),
    "linear, gpt_neox": ("gpt_neox", {"max_position_embeddings": 64, "rope_scaling": LINEAR}, 256),
    # Their configurations say the longer context.
    "llama3": (
        "llama",
        {
            "max_position_embeddings": 512,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
        512,
    ),
    "gemma3": ("gemma3_text", {"max_position_embeddings": 64, "rope_scaling": LINEAR}, 64),
    "none": ("llama", {"max_position_embeddings": 64}, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_the_longest_context(name, tmp_path):
    kind, more, expected = SCALED[name]
    raw = BASE | (GEMMA3 if kind == "gemma3_text" else {"model_type": kind}) | {"rope_theta": 500.0} | more
    if kind == "gemma3_text":
        del raw["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert families.model_config(tmp_path, families.read_config(tmp_path)).max_positions == expected


@pytest.mark.parametrize("scaling", [YARN, LINEAR], ids=["yarn", "linear"])
def test_a_prompt_beyond_the_unscaled_context(scaling, tmp_path, toy):
    settings = {"model_type": "qwen2", "max_position_embeddings": 64}
    folder = save(random_model(settings), tmp_path, toy)
    raw = json.loads((folder / "config.json").read_text()) | {"rope_scaling": scaling, "rope_theta": 500.0}
    del raw["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(raw))
    policy = load_policy(folder)
    text = " ".join(["Lily saw a big red dog and ran to the tree."] * 6)
    prompt, completion = encode_prompt(policy.tokenizer, text), list(range(3, 23))
    assert 64 < len(prompt) + len(completion) <= 256
    (found,) = score((policy,), [text], [completion], [()])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1)[torch.arange(len(completion)), completion]
    np.testing.assert_allclose(found.model_logprobs[:, 0], expected.numpy(), atol=3e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional"])
def test_other_kinds_stay_refused(kind, tmp_path, toy):
    raw = BASE | {"model_type": "llama", "rope_scaling": {"rope_type": kind, "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"config.json: .*(rope_type|rope_parameters).*{kind}"):
        families.model_config(tmp_path, families.read_config(tmp_path))
