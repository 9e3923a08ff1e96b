"""Policy gradient as a script of one afternoon has it: what the trainer's speed is compared with.

A Llama in plain JAX on arrays, a scan that draws a fixed number of tokens with a full cache, a whole
forward pass for the reference's log-probabilities and one under `value_and_grad` for the policy's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dera_jax.models.decoder_config import DecoderConfig


def forward(config: DecoderConfig, params: PyTree, tokens: Int[Array, "rows length"], start, caches):
    """Returns the logits after `tokens`, which stand in the slots from `start` on, and the caches with them."""
    positions = start + jnp.arange(tokens.shape[1])
    slots = caches[0][0].shape[1]
    mask = jnp.arange(slots) <= positions[:, None]
    angles = positions[:, None] * jnp.asarray(config.rope.frequencies(config.head_dim))
    groups = config.num_heads // config.num_kv_heads
    x, after = params["embed"]["embedding"][tokens], []
    for block, (keys, values) in zip(_blocks(params), caches, strict=True):
        maps = {name: each["kernel"] for name, each in block["attention"].items()}
        y = _norm(config, x, block["attention_norm"])
        query, key, value = (
            (y @ maps[name]).reshape(*y.shape[:2], -1, config.head_dim) for name in ("query", "key", "value")
        )
        query, key = _rotate(query, angles), _rotate(key, angles)
        keys = jax.lax.dynamic_update_slice(keys, key, (0, start, 0, 0))
        values = jax.lax.dynamic_update_slice(values, value, (0, start, 0, 0))
        all_keys, all_values = jnp.repeat(keys, groups, axis=2), jnp.repeat(values, groups, axis=2)
        scores = jnp.einsum("rlhd,rshd->rhls", query, all_keys) / jnp.sqrt(config.head_dim)
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        mixed = jnp.einsum("rhls,rshd->rlhd", weights, all_values)
        x = x + mixed.reshape(*x.shape[:2], -1) @ maps["out"]
        y, fed = _norm(config, x, block["feed_forward_norm"]), block["feed_forward"]
        gated = jax.nn.silu(y @ fed["gate"]["kernel"]) * (y @ fed["up"]["kernel"])
        x = x + gated @ fed["down"]["kernel"]
        after.append((keys, values))
    x = _norm(config, x, params["norm"])
    head = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
    return x @ head, after


@partial(jax.jit, static_argnames=("config", "new_tokens"))
def rollout(
    config: DecoderConfig, params: PyTree, prompts: Int[Array, "rows length"], key: Key[Array, ""], new_tokens
) -> Int[Array, "rows new"]:
    """Returns `new_tokens` tokens after each prompt, drawn from the policy."""
    caches = _caches(config, len(prompts), prompts.shape[1] + new_tokens)
    logits, caches = forward(config, params, prompts, 0, caches)

    def step(carry, key):
        logits, caches, place = carry
        token = jax.random.categorical(key, logits)
        logits, caches = forward(config, params, token[:, None], place, caches)
        return (logits[:, -1], caches, place + 1), token

    carry = logits[:, -1], caches, prompts.shape[1]
    return jax.lax.scan(step, carry, jax.random.split(key, new_tokens))[1].T


def logprobs(
    config: DecoderConfig, params: PyTree, tokens: Int[Array, "rows length"], prompt: int
) -> Float[Array, " rows"]:
    """Returns the log-probability of what stands behind the first `prompt` tokens, in nats."""
    logits, _ = forward(config, params, tokens, 0, _caches(config, *tokens.shape))
    words = jax.nn.log_softmax(logits[:, :-1])
    chosen = jnp.take_along_axis(words, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen[:, prompt - 1 :].sum(axis=1)


reference_logprobs = jax.jit(logprobs, static_argnames=("config", "prompt"))


@partial(jax.jit, static_argnames=("config", "optimizer", "prompt", "beta"))
def update(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    state: tuple,
    tokens: Int[Array, "rows length"],
    rewards: Float[Array, " rows"],
    reference: Float[Array, " rows"],
    prompt: int,
    beta: float,
) -> tuple[tuple, Float[Array, ""]]:
    """Returns (parameters, the optimizer's state) after a step of REINFORCE, and the loss."""
    params, opt_state = state

    def loss(params):
        own = logprobs(config, params, tokens, prompt)
        gains = rewards - beta * (jax.lax.stop_gradient(own) - reference)
        return -jnp.mean((gains - gains.mean()) * own)

    value, gradients = jax.value_and_grad(loss)(params)
    changes, opt_state = optimizer.update(gradients, opt_state, params)
    return (optax.apply_updates(params, changes), opt_state), value


def _blocks(params: PyTree) -> list[PyTree]:
    return [params["blocks"][name] for name in sorted(params["blocks"])]


def _caches(config: DecoderConfig, rows: int, slots: int) -> list[tuple[Array, Array]]:
    empty = jnp.zeros((rows, slots, config.num_kv_heads, config.head_dim))
    return [(empty, empty)] * config.num_layers


def _norm(config: DecoderConfig, x: Array, norm: PyTree) -> Array:
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * norm["scale"]


def _rotate(x: Float[Array, "rows length heads head_dim"], angles: Float[Array, "length half"]) -> Array:
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
