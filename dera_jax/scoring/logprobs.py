"""Log-probabilities of given completions under one model, by teacher forcing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dera_jax import models
from dera_jax.data.batches import Batch


def completion_hidden(
    config: models.ModelConfig, params: PyTree, batch: Batch
) -> Float[Array, "rows completion width"]:
    """Returns what the head reads where each completion token was drawn."""
    return models.bind(config, params).completion_hidden(*_given(config, batch))


def completion_logits(
    config: models.ModelConfig, params: PyTree, batch: Batch
) -> Float[Array, "rows completion vocab"]:
    """Returns the logits that each completion token was drawn from."""
    return models.bind(config, params).completion_logits(*_given(config, batch))


def _given(config: models.ModelConfig, batch: Batch) -> tuple:
    """Returns what a model asks for to read a batch."""
    mask = jnp.asarray(batch.mask) if config.encoder_decoder else batch.fed
    starts = () if batch.starts is None else (jnp.asarray(batch.starts),)
    return jnp.asarray(batch.tokens), mask, batch.completion_mask.shape[1], *starts


def completion_logprobs(
    config: models.ModelConfig, params: PyTree, batch: Batch
) -> Float[Array, "rows completion"]:
    """Returns log π(token) of each completion token, 0 where there is none. Differentiable."""
    return token_logprobs(completion_logits(config, params, batch), batch)


compiled_logprobs = jax.jit(completion_logprobs, static_argnames="config")
"""The same, compiled once for all who call it outside a compiled function."""


def token_logprobs(
    logits: Float[Array, "rows completion vocab"], batch: Batch
) -> Float[Array, "rows completion"]:
    """Returns log π(token) of each completion token from the logits it was drawn from."""
    chosen = jnp.take_along_axis(logits, jnp.asarray(batch.completions)[..., None], axis=-1)[..., 0]
    return jnp.where(batch.completion_mask, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
