"""Given tokens: how probable each is at one strength, and which were the most probable ones in its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dera_jax import models
from dera_jax.data.batches import Batch, make_batch
from dera_jax.data.buckets import padded_length
from dera_jax.devices.mesh import mesh_of, rows_for
from dera_jax.devices.placement import shard_rows
from dera_jax.models.places import map_places
from dera_jax.policies.policy import Policy
from dera_jax.realign import mix_centered, strength_weights
from dera_jax.scoring.logprobs import completion_hidden
from dera_jax.strengths import Strength

MOST = 20
"""Words that are told of a place, at most; so many are always found, and one program serves all."""


@dataclass(frozen=True)
class Likeliest:
    """Of one completion, in nats."""

    logprobs: Float[np.ndarray, " tokens"]
    """Of its tokens."""
    words: Int[np.ndarray, "tokens most"]
    """The most probable ones in each place, the first the most probable."""
    word_logprobs: Float[np.ndarray, "tokens most"]


def likeliest(
    policies: Sequence[Policy],
    prompt: Sequence[Sequence[int]],
    completion: Sequence[int],
    strength: Strength,
) -> Likeliest:
    """Returns log π(token) and the most probable tokens of every place of a completion.

    Args:
      prompt: ids that each model reads, at least one.
    """
    configs = tuple(policy.config for policy in policies)
    mesh = mesh_of(policies[0].params)
    rows = rows_for(mesh, 1)
    batches = tuple(
        make_batch([ids], [completion], rows, tight=not config.encoder_decoder, bucket=padded_length)
        for ids, config in zip(prompt, configs, strict=True)
    )
    batches = shard_rows(batches, mesh) if mesh else batches
    params = tuple(policy.params for policy in policies)
    found = jax.device_get(_likeliest(configs, params, batches, strength_weights(strength)))
    return Likeliest(*(each[0, 0, : len(completion)] for each in found))


@partial(jax.jit, static_argnames="configs")
def _likeliest(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    batches: Sequence[Batch],
    weights: Float[Array, " models"],
) -> tuple[
    Float[Array, "one rows tokens"], Int[Array, "one rows tokens most"], Float[Array, "one rows tokens most"]
]:
    vocab = min(config.vocab_size for config in configs)
    hidden = tuple(completion_hidden(c, p, b) for c, p, b in zip(configs, params, batches, strict=True))
    rows, count = batches[0].completion_mask.shape

    def of_places(block):
        hidden, tokens = block
        each = [models.bind(c, p).logits(h) for c, p, h in zip(configs, params, hidden, strict=True)]
        logits = jnp.stack([h[..., :vocab] for h in each])
        mixed = mix_centered(logits, jnp.broadcast_to(weights, (*tokens.shape, len(weights))))
        logprobs = jax.nn.log_softmax(mixed, axis=-1)
        best, words = jax.lax.top_k(logprobs, min(MOST, vocab))
        own = jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]
        return own[None], words[None], best[None]  # of one strength

    return map_places(of_places, (hidden, jnp.asarray(batches[0].completions)), rows * vocab, count)
