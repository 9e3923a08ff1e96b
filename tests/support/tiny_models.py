"""Every family's tiny configuration, parameters and texts for it, a loss and a step."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dera_jax import models
from dera_jax.data.batches import make_batch
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.linear import Adapter
from dera_jax.models.reward import RewardConfig
from dera_jax.models.trees import flatten
from dera_jax.policies import families
from dera_jax.scoring.logprobs import completion_logits, completion_logprobs
from tests.support.shapes import BASE, SHAPES

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-2)))


SMALL = DecoderConfig(
    vocab_size=512, width=32, mlp_width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64
)  # fmt: skip


@cache
def configs():
    """Returns the tiny configuration of every family in its variants, and what is built upon them."""
    from transformers import AutoConfig

    from tests.support.t5_models import BASE as T5_BASE
    from tests.support.t5_models import SHAPES as T5_SHAPES

    found = {}
    for name, settings in SHAPES.items():
        settings = settings if settings.get("model_type") == "gpt2" else BASE | settings
        found[name] = {"model_type": "llama"} | settings
    found |= {f"t5 {name}": T5_BASE | settings for name, settings in T5_SHAPES.items()}
    for name, settings in found.items():
        kind, tied = settings.pop("model_type"), settings.pop("tied", True)
        raw = AutoConfig.for_model(kind, **settings).to_dict()
        found[name] = families.model_config(Path("nowhere"), raw)
        if name.startswith("t5"):
            found[name] = replace(found[name], tie_embeddings=tied)
    llama, t5 = found["llama, biases"], found["t5 v1.1, tied"]
    kernels = [path for path in flatten(models.param_shapes(llama)) if path.endswith("kernel")]
    adapters = tuple(Adapter(path.removesuffix(".kernel"), 4, 2.0) for path in kernels if "head" not in path)
    found["llama, lora"] = replace(llama, adapters=adapters)
    found["llama, int8, lora"] = replace(llama, quantization="int8", adapters=adapters)
    found["llama, nf4"] = replace(llama, quantization="nf4", width=128, mlp_width=256, num_layers=1)
    found["reward of llama"] = RewardConfig(trunk=replace(found["llama, tied"]))
    for head in ("encoder", "decoder"):
        found[f"reward of t5's {head}"] = RewardConfig(trunk=t5, head=head)
    return found


def random_params(config, seed=0):
    """Returns parameters none of which has its initial value."""
    numbers = np.random.default_rng(seed)

    def draw(shape):
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(numbers.integers(0, 15, shape.shape), shape.dtype)
        noise = numbers.standard_normal(shape.shape)
        value = noise / shape.shape[-1] ** 0.5 if len(shape.shape) > 1 else 1 + 0.3 * noise
        return jnp.asarray(value, shape.dtype)

    return jax.tree.map(draw, models.param_shapes(config))


def random_batch(rows=8, seed=1):
    numbers = np.random.default_rng(seed)
    prompts, completions = (
        [numbers.integers(3, 500, size=n).tolist() for n in numbers.integers(1, longest, size=rows)]
        for longest in (30, 14)
    )
    return make_batch(prompts, completions)


def loss(config, params, batch, beta):
    """Returns a loss that reads every completion token, or every row's reward, and what the model says."""
    if isinstance(config, RewardConfig):
        reward = models.bind(config, params)(batch.tokens, batch.mask)
        return jnp.mean(jax.nn.softplus(-beta * reward)), reward
    logprobs = completion_logprobs(config, params, batch)
    return jnp.mean(jax.nn.softplus(-beta * logprobs.sum(axis=1) / 10)), completion_logits(
        config, params, batch
    )


def gradient(config):
    """Returns the function (parameters, batch, beta) -> ((loss, logits), gradients)."""
    return jax.value_and_grad(partial(loss, config), has_aux=True)


def make_step(config):
    """Returns the function (parameters, optimizer state, batch, beta) -> the same after a step, loss, gradients."""

    def step(params, state, batch, beta):
        (value, _), gradients = gradient(config)(params, batch, beta)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, gradients

    return step


def assert_close(ours, expected, bound):
    """Compares two trees, each array's differences with its largest value."""
    for (path, one), other in zip(flatten(ours).items(), flatten(expected).values(), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert abs(one - other).max() <= bound * max(abs(other).max(), 1e-3), path
