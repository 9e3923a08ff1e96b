"""Random models on torch, their files, and what they and ours say of a batch."""

import copy
import re
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from dera_jax import models
from tests.support.shapes import BASE, VOCAB

torch = pytest.importorskip("torch")
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

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


@partial(jax.jit, static_argnames=("config", "last"))
def _forward(config, params, tokens, mask, last):
    return models.bind(config, params).forward(tokens, mask, last)


def our_logits(policy, tokens, mask, last=None):
    return _forward(policy.config, policy.params, tokens, mask, last)


def logits_of_torch(folder):
    # The other implementations of attention leave soft-caps out.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens, _ = padded((60,))
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens).long()).logits.numpy()


def check(policy, folder, atol=1e-4):
    """Compares a policy's logits with those of the folder's model on torch."""
    expected = logits_of_torch(folder)
    assert expected.std() > 0.1
    np.testing.assert_allclose(our_logits(policy, *padded((60,))), expected, atol=atol)
