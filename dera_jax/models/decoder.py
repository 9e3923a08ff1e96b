"""The decoder-only family: one transformer, configured.

Every architecture is a `DecoderConfig`; where two families differ, they differ in a field here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.configs import check_choice, check_count, check_number
from dera_jax.models.layers import (
    ACTIVATIONS,
    KVCache,
    LayerNorm,
    RMSNorm,
    attend,
    attend_causal,
    block_caller,
    join_heads,
    softcapped,
    split_heads,
    vocabulary_logits,
    write_slots,
)
from dera_jax.models.linear import Linear, WeightsConfig
from dera_jax.models.rope import Rope, rotate


@dataclass(frozen=True)
class DecoderConfig(WeightsConfig):
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
    activation: str = "silu"
    gated: bool = True
    """Whether the feed-forward block is down(activation(gate) · up), not down(activation(up))."""
    norm: str = "rms"
    """rms, rms_unit_offset (scale stored less 1) or layer (with mean and bias)."""
    norm_epsilon: float = 1e-5
    pre_norm: bool = True
    """Whether attention and feed-forward block read normalized input."""
    post_norm: bool = False
    """Whether their outputs are normalized before they are added."""
    parallel: bool = False
    """Whether both read the block's input, not the second the first's sum."""
    qk_norm: str | None = None
    """Normalization of queries and keys: head (each by itself) or width (all heads together)."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    rope: Rope | None = Rope()  # noqa: RUF009 (frozen)
    """None: learned position embeddings."""
    local_rope: Rope | None = None
    """Of layers with a window, where it is another."""
    windows: tuple[int, ...] = ()
    """Of each layer: how many positions, its own included, a token sees; 0 is all. Empty: all, everywhere."""
    query_scale: float | None = None
    """Factor of the attention scores; None is 1/√head_dim."""
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    """Scores and logits are bounded by c · tanh(x/c); 0 is not at all."""
    embedding_scale: float = 1.0
    """Factor of the token embeddings."""
    tie_embeddings: bool = False
    """Whether the head is the embedding, transposed."""

    start_token = None
    """A prompt is what the model continues; there is no token to start with."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("vocab_size", "width", "mlp_width", "num_layers", "head_dim", "max_positions"):
            check_count(name, getattr(self, name))
        check_number("norm_epsilon", self.norm_epsilon, 0.0, 1.0)
        check_count("num_kv_heads", self.num_kv_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: expected a divisor of num_heads ({self.num_heads}), got {self.num_kv_heads}"
            )
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("norm", self.norm, ("rms", "rms_unit_offset", "layer"))
        if self.qk_norm is not None:
            check_choice("qk_norm", self.qk_norm, ("head", "width"))
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(
                f"windows: expected one for each of {self.num_layers} layers, got {self.windows}"
            )

    def window(self, layer: int) -> int:
        """Returns how many positions a token sees in `layer`; 0 is all."""
        return self.windows[layer] if self.windows else 0


class Seen(NamedTuple):
    """What a layer needs to know of the tokens at hand."""

    angles: Float[Array, "rows length half"] | None
    mask: Bool[Array, "rows length slots"]
    index: Int[Array, " rows"] | None


class Attention(nnx.Module):
    """Grouped-query attention."""

    def __init__(self, config: DecoderConfig, layer: int, rngs: nnx.Rngs):
        dtype, heads, kv_heads = config.dtype, config.num_heads, config.num_kv_heads
        width, head_dim = config.width, config.head_dim
        self.query = Linear(width, heads * head_dim, dtype, rngs, config.qkv_bias)
        self.key = Linear(width, kv_heads * head_dim, dtype, rngs, config.qkv_bias)
        self.value = Linear(width, kv_heads * head_dim, dtype, rngs, config.qkv_bias)
        self.out = Linear(heads * head_dim, width, dtype, rngs, config.out_bias)
        if config.qk_norm:
            whole = config.qk_norm == "width"
            self.query_norm = make_norm(config, heads * head_dim if whole else head_dim)
            self.key_norm = make_norm(config, kv_heads * head_dim if whole else head_dim)
        self.config = config
        self.rope = config.local_rope or config.rope if config.window(layer) else config.rope

    def __call__(self, x, seen: Seen, past: tuple[Array, Array] | None):
        config, query, key = self.config, self.query(x), self.key(x)
        if config.qk_norm == "width":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (split_heads(each, config.head_dim) for each in (query, key, self.value(x)))
        if config.qk_norm == "head":
            query, key = self.query_norm(query), self.key_norm(key)
        if seen.angles is not None:
            query, key = (rotate(each, seen.angles, self.rope.attention_factor) for each in (query, key))
        scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
        if past is None:
            mixed = attend_causal(query, key, value, seen.mask, scale, config.attention_softcap)
        else:
            key, value = (write_slots(p, new, seen.index) for p, new in zip(past, (key, value), strict=True))
            mixed = attend(query, key, value, seen.mask, scale, config.attention_softcap)
        return self.out(join_heads(mixed)), (key, value)


class FeedForward(nnx.Module):
    """down(activation(gate(x)) · up(x)), or down(activation(up(x))) without a gate."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        dtype, width, hidden, bias = config.dtype, config.width, config.mlp_width, config.mlp_bias
        self.gate = Linear(width, hidden, dtype, rngs, bias) if config.gated else None
        self.up = Linear(width, hidden, dtype, rngs, bias)
        self.down = Linear(hidden, width, dtype, rngs, bias)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        activation = ACTIVATIONS[self.activation]
        return self.down(
            activation(self.up(x)) if self.gate is None else activation(self.gate(x)) * self.up(x)
        )


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), with the norms where the family has them."""

    def __init__(self, config: DecoderConfig, layer: int, rngs: nnx.Rngs):
        self.attention = Attention(config, layer, rngs)
        self.feed_forward = FeedForward(config, rngs)
        for there, when in ((config.pre_norm, ""), (config.post_norm, "post_")):
            for name in ("attention", "feed_forward"):
                setattr(self, f"{when}{name}_norm", make_norm(config, config.width) if there else _same)
        self.parallel = config.parallel

    def __call__(self, x, seen: Seen, past: tuple[Array, Array] | None):
        mixed, present = self.attention(self.attention_norm(x), seen, past)
        after = x + self.post_attention_norm(mixed)
        fed = self.feed_forward(self.feed_forward_norm(x if self.parallel else after))
        return after + self.post_feed_forward_norm(fed), present


class Decoder(nnx.Module):
    """A decoder-only language model with the faces that decoding, scoring and rewards need."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.embed = _embedding(config.vocab_size, config, rngs)
        if config.rope is None:
            self.positions = _embedding(config.max_positions, config, rngs)
        self.blocks = nnx.List([Block(config, layer, rngs) for layer in range(config.num_layers)])
        self.norm = make_norm(config, config.width)
        tied = config.tie_embeddings
        self.head = None if tied else Linear(config.width, config.vocab_size, config.dtype, rngs)
        self.config = config

    def forward(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"], last: int | None = None
    ) -> Float[Array, "rows last vocab"]:
        """Returns the logits after every token, or the `last` ones; padding may stand on either side."""
        hidden = self.hidden(tokens, mask)
        return self._logits(hidden if last is None else hidden[:, -last:])

    def hidden(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
    ) -> Float[Array, "rows length width"]:
        """Returns what the head reads."""
        return self._trunk(tokens, _positions(mask), _causal(mask))[0]

    def packed_logits(
        self, tokens: Int[Array, "rows length"], segments: Int[Array, "rows length"]
    ) -> Float[Array, "rows length vocab"]:
        """Returns the logits after every token of rows that hold several texts, numbered from 1."""
        length = tokens.shape[1]
        slots = jnp.arange(length)
        starts = jnp.diff(segments, axis=1, prepend=0) != 0
        first = jax.lax.cummax(jnp.where(starts, slots, 0), axis=1)
        own = segments[:, :, None] == segments[:, None]
        return self._logits(self._trunk(tokens, slots - first, own & _causal(segments > 0))[0])

    def completion_logits(
        self,
        tokens: Int[Array, "rows length"],
        mask: Bool[Array, "rows length"],
        count: int,
        starts: Int[Array, " rows"] | None = None,
    ) -> Float[Array, "rows count vocab"]:
        """Returns the logits that each of `count` tokens was drawn from: the last, or those from `starts` on."""
        return self._logits(self.completion_hidden(tokens, mask, count, starts))

    def completion_hidden(
        self,
        tokens: Int[Array, "rows length"],
        mask: Bool[Array, "rows length"],
        count: int,
        starts: Int[Array, " rows"] | None = None,
    ) -> Float[Array, "rows count width"]:
        """Returns what the head reads before each of these tokens: what the token before it left."""
        hidden = self.hidden(tokens, mask)
        if starts is None:
            return hidden[:, -count - 1 : -1]
        places = jnp.minimum(starts[:, None] - 1 + jnp.arange(count), tokens.shape[1] - 1)
        return jnp.take_along_axis(hidden, places[..., None], axis=1)

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
        x = self.embed(tokens)
        if config.embedding_scale != 1:
            x *= jnp.asarray(config.embedding_scale, x.dtype)
        if config.rope is None:
            x += self.positions(positions)
        seen: dict[tuple, Seen] = {}
        present, call = [], block_caller(config.remat)
        for layer, block in enumerate(self.blocks):
            kind = block.attention.rope, config.window(layer)
            if kind not in seen:
                seen[kind] = Seen(
                    _angles(config, kind[0], positions), _in_window(mask, index, kind[1]), index
                )
            x, keys_and_values = call(block, x, seen[kind], past and past[layer])
            present.append(keys_and_values)
        return self.norm(x), present

    def _logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        return softcapped(vocabulary_logits(hidden, self.embed, self.head), self.config.logit_softcap)


def make_norm(config: DecoderConfig, width: int) -> nnx.Module:
    """Returns a normalization of the configuration's kind."""
    if config.norm == "layer":
        return LayerNorm(width, config.norm_epsilon, config.dtype)
    return RMSNorm(width, config.norm_epsilon, config.dtype, config.norm == "rms_unit_offset")


def _same(x: Array) -> Array:
    return x


def _embedding(count: int, config: DecoderConfig, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(count, config.width, param_dtype=config.dtype, dtype=config.dtype, rngs=rngs)


def _angles(
    config: DecoderConfig, rope: Rope | None, positions: Int[Array, "rows length"]
) -> Float[Array, "rows length half"] | None:
    return None if rope is None else positions[..., None] * jnp.asarray(rope.frequencies(config.head_dim))


def _positions(mask: Bool[Array, "rows length"]) -> Int[Array, "rows length"]:
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def _causal(mask: Bool[Array, "rows length"]) -> Bool[Array, "rows length length"]:
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask[:, None]


def _in_window(
    mask: Bool[Array, "rows length slots"], index: Int[Array, " rows"] | None, window: int
) -> Bool[Array, "rows length slots"]:
    """Returns `mask` without what lies `window` or more slots back; in a row slots are positions apart."""
    if not window:
        return mask
    _, length, slots = mask.shape
    own = jnp.arange(length) if index is None else index[:, None]
    return mask & (jnp.arange(slots) > own[..., None] - window)
