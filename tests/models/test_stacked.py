"""Blocks as a loop give what blocks one by one give."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from dera_jax.models.stacked import _period
from dera_jax.scoring.logprobs import completion_logprobs
from tests.support.tiny_models import configs, random_batch, random_params


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    "name", ["llama, biases", "gpt2", "gemma2", "gemma3_text", "llama, lora", "llama, int8, lora"]
)
def test_values_and_gradients_are_those_of_single_blocks(name, remat):
    config, batch = configs()[name], random_batch()
    params = random_params(config)

    def loss(params, config):
        floats = jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None, params)
        rest = jax.tree.map(lambda a: None if jnp.issubdtype(a.dtype, jnp.floating) else a, params)

        def of(floats):
            whole = jax.tree.map(
                lambda a, b: b if a is None else a, floats, rest, is_leaf=lambda a: a is None
            )
            return completion_logprobs(config, whole, batch).sum()

        return jax.value_and_grad(of)(floats)

    compute = jax.jit(loss, static_argnums=1)
    value, gradients = compute(params, config)
    ours, own_gradients = compute(params, replace(config, scan=True, remat=remat))
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), own_gradients, gradients)
    assert "stablehlo.while" in compute.lower(params, replace(config, scan=True)).as_text()


def test_caches_are_those_of_single_blocks():
    config, batch = configs()["gemma2"], random_batch()
    params = random_params(config)
    tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.mask)
    fill = jax.jit(lambda p, c: models.bind(c, p).prefill(tokens, mask), static_argnums=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        fill(params, replace(config, scan=True)),
        fill(params, config),
    )


def test_kinds_that_repeat_are_one_turn():
    assert [_period(k) for k in ("aaaa", "abab", "aab", "aabaab", "aabaaba", "a")] == [
        1, 2, 3, 3, 3, 1
    ]  # fmt: skip
