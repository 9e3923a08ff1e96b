"""The decoder-only family: one transformer, configured.

Every architecture is a `DecoderConfig`; where two families differ, they differ in a field here.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.configs import check_count, check_number
from dera_jax.models.layers import PRECISION, KVCache, RMSNorm, Rope, attend, rotate, write_slots

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and kind of a decoder-only transformer."""

    vocab_size: int
    """Rows of the embedding; at least the tokenizer's size."""
    width: int
    """Size of the residual stream."""
    mlp_width: int
    """Hidden size of the feed-forward block."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Key-value heads; divides num_heads (grouped-query attention)."""
    head_dim: int
    max_positions: int
    """Longest context, in tokens, that the model was trained for."""
    norm_epsilon: float = 1e-5
    activation: str = "silu"
    rope: Rope = field(default_factory=Rope)
    tie_embeddings: bool = False
    """Whether the head is the embedding, transposed."""
    dtype: str = "float32"
    """Of parameters and activations; logits are float32 always."""

    def __post_init__(self):
        for name in ("vocab_size", "width", "mlp_width", "num_layers", "head_dim", "max_positions"):
            check_count(name, getattr(self, name))
        check_number("norm_epsilon", self.norm_epsilon, 0.0, 1.0)
        check_count("num_kv_heads", self.num_kv_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: expected a divisor of num_heads ({self.num_heads}), got {self.num_kv_heads}"
            )
        if self.activation not in ACTIVATIONS:
            expected = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation: expected one of {expected}, got {self.activation!r}")


class _Context(NamedTuple):
    """What every layer needs to know of the tokens at hand."""

    angles: Float[Array, "rows length half"]
    mask: Bool[Array, "rows length slots"]
    index: Int[Array, " rows"] | None


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.query = _linear(config.width, heads * head_dim, config, rngs)
        self.key = _linear(config.width, kv_heads * head_dim, config, rngs)
        self.value = _linear(config.width, kv_heads * head_dim, config, rngs)
        self.out = _linear(heads * head_dim, config.width, config, rngs)
        self.head_dim = head_dim

    def __call__(self, x, context: _Context, past: tuple[Array, Array] | None):
        query = rotate(self._heads(self.query(x)), context.angles)
        key = rotate(self._heads(self.key(x)), context.angles)
        value = self._heads(self.value(x))
        if past is not None:
            key = write_slots(past[0], key, context.index)
            value = write_slots(past[1], value, context.index)
        mixed = attend(query, key, value, context.mask, self.head_dim**-0.5)
        return self.out(mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1)), (key, value)

    def _heads(self, x: Float[Array, "rows length width"]) -> Float[Array, "rows heads length head_dim"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim).swapaxes(1, 2)


class FeedForward(nnx.Module):
    """down(activation(gate(x)) · up(x))."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.gate = _linear(config.width, config.mlp_width, config, rngs)
        self.up = _linear(config.width, config.mlp_width, config, rngs)
        self.down = _linear(config.mlp_width, config.width, config, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon, dtype)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon, dtype)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x, context: _Context, past: tuple[Array, Array] | None):
        mixed, present = self.attention(self.attention_norm(x), context, past)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), present


class Decoder(nnx.Module):
    """A decoder-only language model with the three faces that decoding and training need."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.embed = nnx.Embed(config.vocab_size, config.width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.width, config.norm_epsilon, dtype)
        self.head = None if config.tie_embeddings else _linear(config.width, config.vocab_size, config, rngs)
        self.config = config

    def forward(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"], last: int | None = None
    ) -> Float[Array, "rows last vocab"]:
        """Returns the logits after every token, or the `last` ones; padding may stand on either side."""
        hidden, _ = self._trunk(tokens, _positions(mask), _causal(mask))
        return self._logits(hidden if last is None else hidden[:, -last:])

    def prefill(self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]) -> KVCache:
        """Returns the cache of left-padded tokens."""
        _, present = self._trunk(tokens, _positions(mask), _causal(mask))
        keys, values = zip(*present, strict=True)
        return KVCache(keys, values, mask, jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32))

    def step(
        self, token: Int[Array, " rows"], position: Int[Array, " rows"], cache: KVCache
    ) -> tuple[Float[Array, "rows vocab"], KVCache]:
        """Returns the logits after one more token, and the cache with it."""
        slots = jnp.arange(cache.mask.shape[1])
        mask = cache.mask | (slots == cache.index[:, None])
        past = tuple(zip(cache.keys, cache.values, strict=True))
        hidden, present = self._trunk(token[:, None], position[:, None], mask[:, None], past, cache.index)
        keys, values = zip(*present, strict=True)
        return self._logits(hidden)[:, 0], KVCache(keys, values, mask, cache.index + 1)

    def _trunk(self, tokens, positions, mask, past=None, index=None):
        config = self.config
        frequencies = jnp.asarray(config.rope.frequencies(config.head_dim))
        context = _Context(positions[..., None] * frequencies, mask, index)
        x, present = self.embed(tokens), []
        for layer, block in enumerate(self.blocks):
            x, keys_and_values = block(x, context, past and past[layer])
            present.append(keys_and_values)
        return self.norm(x), present

    def _logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        kernel = self.embed.embedding[...].T if self.head is None else self.head.kernel[...]
        # Not rounded to the activations' type first: a mixture multiplies that rounding by |λ| + |1 − λ|.
        return jnp.matmul(hidden, kernel, precision=PRECISION, preferred_element_type=jnp.float32)


def _positions(mask: Bool[Array, "rows length"]) -> Int[Array, "rows length"]:
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def _causal(mask: Bool[Array, "rows length"]) -> Bool[Array, "rows length length"]:
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[:, None]


def _linear(inputs: int, outputs: int, config: DecoderConfig, rngs: nnx.Rngs) -> nnx.Linear:
    dtype = jnp.dtype(config.dtype)
    return nnx.Linear(
        inputs, outputs, use_bias=False, param_dtype=dtype, dtype=dtype, precision=PRECISION, rngs=rngs
    )
