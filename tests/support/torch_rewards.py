"""Random reward models on torch, and texts for them."""

import numpy as np
import pytest

from tests.support.shapes import SHAPES, VOCAB
from tests.support.torch_models import random_model

torch = pytest.importorskip("torch")
from transformers import AutoModelForSequenceClassification  # noqa: E402

TEXTS = [np.random.default_rng(n).integers(3, VOCAB, size=n).tolist() for n in (1, 5, 16, 17, 40, 3, 9)]
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2,
    "num_heads": 4, "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0, "num_labels": 1, "classifier_dropout": 0.0,
}  # fmt: skip


def classifier(name):
    """Returns a random reward model of a family; its id for padding is 0."""
    settings = dict(SHAPES[name])
    kind = settings.get("model_type", "llama")
    config = random_model(settings).config
    assert config.model_type == kind
    config.num_labels, config.pad_token_id = 1, 0
    attention = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    return randomize(AutoModelForSequenceClassification.from_config(config, **attention))


def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.3 * noise if "norm" in name else noise / value.shape[-1] ** 0.5)
    return model.eval()
