"""The encoder-decoder family: T5 (arXiv:1910.10683), its version 1.1 and mT5.

The prompt is what the encoder reads, once; the decoder begins with a start token.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.models.attention import Span, attend
from dera_jax.models.caches import Past, Recent, Slots, kept
from dera_jax.models.layers import (
    ACTIVATIONS,
    RMSNorm,
    block_caller,
    join_heads,
    split_heads,
    vocabulary_logits,
)
from dera_jax.models.linear import Linear
from dera_jax.models.t5_config import T5Config

KeysAndValues = tuple[Slots, Slots]


class T5Cache(NamedTuple):
    """What the decoder remembers of a row: its own tokens, as in `KVCache`, and the encoder's.

    The prompt takes no slot of `keys` and `values`: the start token goes to slot 0.
    """

    keys: tuple[Slots, ...]
    values: tuple[Slots, ...]
    mask: Bool[Array, "rows slots"]
    index: Int[Array, " rows"]
    cross_keys: tuple[Slots, ...]
    cross_values: tuple[Slots, ...]
    cross_mask: Bool[Array, "rows prompt"]


class Seen(NamedTuple):
    """What every layer of a stack needs to know of the tokens at hand."""

    mask: Bool[Array, "#rows #length slots"]
    """Of the tokens themselves, or of those in the cache; the bias likewise."""
    bias: Float[Array, "*rows heads length slots"]
    recent_mask: Bool[Array, "#rows length room"] | None = None
    recent_bias: Float[Array, "#rows heads length room"] | None = None
    count: Int[Array, "*rows"] | None = None
    """Of the tokens not in the cache yet."""
    cross_mask: Bool[Array, "rows 1 prompt"] | None = None


class DistanceBias(nnx.Module):
    """A bias of attention scores, by head and by how far a key is from its query."""

    def __init__(self, config: T5Config, causal: bool, rngs: nnx.Rngs):
        start = nnx.initializers.normal(config.width**-0.5)
        shape = config.buckets, config.num_heads
        self.embedding = nnx.Param(start(rngs.params(), shape, config.dtype))
        self.max_distance, self.causal = config.max_distance, causal

    def __call__(
        self, distance: Int[Array, "*rows length slots"]
    ) -> Float[Array, "*rows heads length slots"]:
        """Returns the bias of keys that are `distance` slots behind (negative: before) their queries."""
        far = self.max_distance
        buckets = distance_buckets(self.embedding.shape[0], far, self.causal)
        by_distance = self.embedding[...].astype(jnp.float32)[buckets]
        return jnp.moveaxis(by_distance[jnp.clip(distance, -far, far) + far], -1, -3)


class Attention(nnx.Module):
    """Attention without a scale, to the tokens themselves or to the encoder's."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        width, inner, dtype = config.width, config.num_heads * config.head_dim, config.dtype
        self.query = Linear(width, inner, dtype, rngs)
        self.query.kernel[...] *= config.head_dim**-0.5  # at the start, in place of the scale
        self.key = Linear(width, inner, dtype, rngs)
        self.value = Linear(width, inner, dtype, rngs)
        self.out = Linear(inner, width, dtype, rngs)
        self.head_dim = config.head_dim

    def keys_and_values(self, x: Float[Array, "rows slots width"]) -> KeysAndValues:
        """Returns what `x` can be attended to by."""
        return split_heads(self.key(x), self.head_dim), split_heads(self.value(x), self.head_dim)

    def __call__(
        self, x: Float[Array, "rows length width"], *spans: Span
    ) -> Float[Array, "rows length width"]:
        query = split_heads(self.query(x), self.head_dim)
        return self.out(join_heads(attend(query, spans, 1.0)), "float32")


class FeedForward(nnx.Module):
    """down(activation(gate(x)) · linear(x)), or down(activation(up(x))) in the first version."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        for name in ("gate", "linear") if config.gated else ("up",):
            setattr(self, name, Linear(config.width, config.mlp_width, config.dtype, rngs))
        self.down = Linear(config.mlp_width, config.width, config.dtype, rngs)
        self.activation, self.gated = config.activation, config.gated

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        activation = ACTIVATIONS[self.activation]
        hidden = activation(self.gate(x)) * self.linear(x) if self.gated else activation(self.up(x))
        return self.down(hidden, "float32")


class Block(nnx.Module):
    """x + attention(norm(x)), in the decoder + cross_attention(norm(x)), then + feed_forward(norm(x)).

    The residual stream is float32, whatever the parameters are: it outgrows float16.
    """

    def __init__(self, config: T5Config, decoder: bool, rngs: nnx.Rngs):
        self.attention_norm = _norm(config)
        self.attention = Attention(config, rngs)
        if decoder:
            self.cross_attention_norm = _norm(config)
            self.cross_attention = Attention(config, rngs)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = FeedForward(config, rngs)
        self.dtype = config.dtype

    def __call__(self, x, seen: Seen, past: Past | None, cross: KeysAndValues | None):
        read = self.attention_norm(x).astype(self.dtype)
        present = self.attention.keys_and_values(read)
        if past is None:
            spans = (Span(*present, seen.mask, seen.bias),)
        else:
            past = past.then(*present, seen.count)
            present = past.recent_keys, past.recent_values
            own = Span(*present, seen.recent_mask, seen.recent_bias)
            spans = Span(past.keys, past.values, seen.mask, seen.bias), own
        x += self.attention(read, *spans)
        if cross is not None:
            read = self.cross_attention_norm(x).astype(self.dtype)
            x += self.cross_attention(read, Span(*cross, seen.cross_mask))
        return x + self.feed_forward(self.feed_forward_norm(x).astype(self.dtype)), present


class Stack(nnx.Module):
    """The encoder, or the decoder."""

    def __init__(self, config: T5Config, decoder: bool, rngs: nnx.Rngs):
        count = config.num_layers if decoder else config.num_encoder_layers
        self.bias = DistanceBias(config, decoder, rngs)
        self.blocks = nnx.List([Block(config, decoder, rngs) for _ in range(count)])
        self.norm = _norm(config)
        self.dtype, self.remat = config.dtype, config.remat

    def __call__(self, x, seen: Seen, past=None, cross=None):
        x, present, call = x.astype(jnp.float32), [], block_caller(self.remat and past is None)
        for layer, block in enumerate(self.blocks):
            x, keys_and_values = call(block, x, seen, past and past[layer], cross and cross[layer])
            present.append(keys_and_values)
        return self.norm(x).astype(self.dtype), present


class T5(nnx.Module):
    """An encoder-decoder language model with the faces that decoding, scoring and rewards need."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        dtype = config.dtype
        self.embed = nnx.Embed(config.vocab_size, config.width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.encoder = Stack(config, False, rngs)
        self.decoder = Stack(config, True, rngs)
        tied = config.tie_embeddings
        self.head = None if tied else Linear(config.width, config.vocab_size, dtype, rngs)
        self.config = config

    def encode(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
    ) -> Float[Array, "rows length width"]:
        """Returns what the decoder attends to; padding may stand on either side."""
        seen = Seen(mask[:, None], self.encoder.bias(_distances(tokens.shape[1])))
        return self.encoder(self.embed(tokens), seen)[0]

    def decode(
        self,
        tokens: Int[Array, "rows length"],
        mask: Bool[Array, "rows length"],
        encoded: Float[Array, "rows prompt width"],
        encoded_mask: Bool[Array, "rows prompt"],
    ) -> Float[Array, "rows length width"]:
        """Returns what the head reads at each of `tokens`, the start token among them."""
        length = tokens.shape[1]
        seen = Seen(
            jnp.tril(jnp.ones((length, length), bool)) & mask[:, None],
            self.decoder.bias(_distances(length)),
            cross_mask=encoded_mask[:, None],
        )
        return self.decoder(self.embed(tokens), seen, cross=self._cross(encoded))[0]

    def hidden(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
    ) -> Float[Array, "rows length width"]:
        """Returns what a reward head reads: the decoder's output where both read `tokens`.

        The decoder is one token behind, so its output at the last token has seen all of them only
        through the encoder. Padding may stand on either side.
        """
        before = jnp.pad(mask, ((0, 0), (1, 0)))[:, :-1]
        shifted = jnp.where(before, jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1], self.config.start_token)
        return self.decode(shifted, mask, self.encode(tokens, mask), mask)

    def logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        """Returns what the head makes of its input."""
        logits = vocabulary_logits(hidden, self.embed, self.head)
        return logits * self.config.width**-0.5 if self.config.scale_outputs else logits

    def completion_logits(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"], count: int
    ) -> Float[Array, "rows count vocab"]:
        """Returns the logits that each of the last `count` tokens was drawn from; the rest is the prompt."""
        return self.logits(self.completion_hidden(tokens, mask, count))

    def completion_hidden(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"], count: int
    ) -> Float[Array, "rows count width"]:
        """Returns what the head reads before each of the last `count` tokens."""
        prompt, completion = jnp.split(tokens, [tokens.shape[1] - count], axis=1)
        prompt_mask = mask[:, :-count]
        start = jnp.full_like(completion[:, :1], self.config.start_token)
        shifted = jnp.concatenate([start, completion[:, :-1]], axis=1)
        # No token sees the padding, which is behind them all.
        everywhere = jnp.ones(shifted.shape, bool)
        return self.decode(shifted, everywhere, self.encode(prompt, prompt_mask), prompt_mask)

    def prefill(self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]) -> T5Cache:
        """Returns the cache of padded prompts, with the decoder's first token still to come."""
        config, rows = self.config, tokens.shape[0]
        cross = ([kept(x, config.kv_cache) for x in pair] for pair in self._cross(self.encode(tokens, mask)))
        cross_keys, cross_values = zip(*cross, strict=True)
        none = jnp.zeros((rows, config.num_heads, 0, config.head_dim), config.dtype)
        empty = (kept(none, config.kv_cache),) * config.num_layers
        return T5Cache(
            keys=empty,
            values=empty,
            mask=jnp.zeros((rows, 0), bool),
            index=jnp.zeros(rows, jnp.int32),
            cross_keys=cross_keys,
            cross_values=cross_values,
            cross_mask=mask,
        )

    def step(
        self, token: Int[Array, " rows"], position: Int[Array, " rows"], cache: T5Cache, recent: Recent
    ) -> tuple[Float[Array, "rows vocab"], Recent]:
        """Returns the logits after one more token, and `recent` with it.

        Args:
          position: of the token; told by its slot already.
        """
        logits, recent = self.steps(token[:, None], position[:, None], cache, recent)
        return logits[:, 0], recent

    def steps(
        self,
        tokens: Int[Array, "rows length"],
        positions: Int[Array, "rows length"],
        cache: T5Cache,
        recent: Recent,
    ) -> tuple[Float[Array, "rows length vocab"], Recent]:
        """Returns the logits after each of several more tokens, and `recent` with them.

        Args:
          positions: of the tokens; told by their slots already.
        """
        length, room = tokens.shape[1], recent.keys[0].shape[2]
        places = recent.places(length)
        slots = (cache.index[:, None] + places)[..., None]
        new = (jnp.arange(room) - places[..., None]).reshape(-1, length, room)
        seen = Seen(
            cache.mask[:, None],
            self.decoder.bias(jnp.arange(cache.mask.shape[1]) - slots),
            new <= 0,
            self.decoder.bias(new),
            recent.count,
            cache.cross_mask[:, None],
        )
        past = tuple(map(Past, cache.keys, cache.values, recent.keys, recent.values))
        cross = tuple(zip(cache.cross_keys, cache.cross_values, strict=True))
        hidden, present = self.decoder(self.embed(tokens), seen, past, cross)
        keys, values = zip(*present, strict=True)
        return self.logits(hidden), Recent(keys, values, recent.count + length)

    def _cross(self, encoded: Float[Array, "rows prompt width"]) -> list[KeysAndValues]:
        return [block.cross_attention.keys_and_values(encoded) for block in self.decoder.blocks]


def distance_buckets(count: int, max_distance: int, causal: bool) -> np.ndarray:
    """Returns the bucket of every distance from −max_distance to max_distance, of `count` in all.

    Half of the buckets hold one distance each, the others wider and wider ranges. The encoder has
    half of either for keys before their queries and half for keys behind them.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    if causal:
        behind, apart = 0, np.maximum(-distance, 0)
    else:
        count //= 2
        behind, apart = count * (distance > 0), abs(distance)
    single = count // 2
    # In float32, as where the models were trained: the borders between ranges depend on it.
    share = np.log(np.maximum(apart, single).astype(np.float32) / single) / np.float32(
        math.log(max_distance / single)
    )
    ranges = single + (share * (count - single)).astype(int)
    return behind + np.where(apart < single, apart, np.minimum(ranges, count - 1))


def _distances(length: int) -> Int[Array, "length length"]:
    slots = jnp.arange(length)
    return slots - slots[:, None]


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.width, config.norm_epsilon, config.dtype)
