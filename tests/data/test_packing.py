"""Packed rows: the same loss and gradients as a row for each example."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.data.examples import Example
from dera_jax.training import losses
from dera_jax.training.config import TrainConfig
from dera_jax.training.packing import pack
from dera_jax.training.sft import sft_method
from tests.support.shapes import SHAPES, VOCAB
from tests.support.torch_models import random_model, save

RANDOM = np.random.default_rng(0)
EXAMPLES = [
    Example(*(tuple(RANDOM.integers(3, VOCAB, size=size).tolist()) for size in sizes))
    for sizes in ((3, 9), (1, 4), (12, 2), (5, 5), (2, 30), (7, 1), (1, 1))
]
LENGTH = 40


def test_packing_loses_nothing_and_wastes_little():
    lengths = np.random.default_rng(1).integers(2, 200, size=500)
    examples = [Example((n,), tuple(range(size - 1))) for n, size in enumerate(lengths)]
    rows = pack(examples, 256)
    sizes = [sum(len(e.prompt) + len(e.completion) for e in row) for row in rows]
    assert sorted(e.prompt[0] for row in rows for e in row) == list(range(500))
    assert max(sizes) <= 256
    print(f"{100 * sum(sizes) / (256 * len(rows)):.1f} % of {len(rows)} rows are real tokens")
    assert len(rows) <= -(-sum(sizes) // 256) * 1.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "gpt_neox"])
def test_packed_rows_have_the_loss_and_gradients_of_single_ones(name, tmp_path, toy):
    policy = load_policy(save(random_model(SHAPES[name]), tmp_path, toy))
    config = TrainConfig(batch_size=len(EXAMPLES))
    found = []
    for packed in (None, LENGTH):
        rows = len(pack(EXAMPLES, LENGTH)) if packed else len(EXAMPLES)
        method = sft_method(policy, EXAMPLES, replace(config, batch_size=rows), packed_length=packed)
        batch, logged = method.batches(None, 0)

        def loss(params, method=method, batch=batch):
            terms = method.loss(params, method.constants, batch)
            return losses.mean_over(terms.values, terms.weights)

        found.append(jax.value_and_grad(loss)(method.trained))
        assert logged["tokens"] == sum(len(e.prompt) + len(e.completion) for e in EXAMPLES)
    (alone, slopes), (together, of_packed) = found
    assert float(alone) == pytest.approx(float(together), rel=1e-6)
    for path, slope in slopes.items():
        scale = max(abs(slope).max(), 1e-3)
        np.testing.assert_allclose(of_packed[path], slope, atol=2e-5 * scale, err_msg=path)
