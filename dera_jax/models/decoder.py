"""The decoder-only family: one transformer, configured by a `DecoderConfig`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.models.attention import Span, attend
from dera_jax.models.caches import (
    KVCache,
    Past,
    Recent,
    drop_first,
    empty_cache,
    new_cache,
    store_piece,
    visible,
)
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.flash import attend_text, choose, platform_of
from dera_jax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    RMSNorm,
    block_caller,
    join_heads,
    softcapped,
    split_heads,
    vocabulary_logits,
)
from dera_jax.models.linear import Linear
from dera_jax.models.masks import causal, in_window, positions_of
from dera_jax.models.rope import Rope, rotate
from dera_jax.models.stacked import scan_blocks
from dera_jax.models.steering import Steering

WHOLE = 2048
"""Tokens of the longest prompt that is read at once, which is less work; with splash there is no longest."""
PIECE = 512
"""Tokens of a longer one that are read at a time: scores are [heads, PIECE, slots]."""


class Seen(NamedTuple):
    """What a layer needs to know of the tokens at hand."""

    angles: Float[Array, "rows length half"] | None
    mask: Bool[Array, "rows length slots"]
    """Of the tokens themselves, or of those in the cache."""
    recent_mask: Bool[Array, "#rows #length room"] | None = None
    count: Int[Array, "*rows"] | None = None
    """Of the tokens not in the cache yet."""
    segments: Int[Array, "rows length"] | None = None
    """Of tokens that are all read at once: their texts' numbers, 0 for padding."""


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
        self.config, self.window = config, config.window(layer)
        self.rope = config.local_rope or config.rope if config.window(layer) else config.rope

    def __call__(self, x, seen: Seen, past: Past | None):
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
            mixed = attend_text(
                config.attention, query, key, value, seen.mask, seen.segments, self.window, scale,
                config.attention_softcap,
            )  # fmt: skip
        else:
            past = past.then(key, value, seen.count)
            key, value = past.recent_keys, past.recent_values
            spans = Span(past.keys, past.values, seen.mask), Span(key, value, seen.recent_mask)
            mixed = attend(query, spans, scale, config.attention_softcap)
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
        self.steer = Steering(config, config.width) if config.steered else _same

    def __call__(self, x, seen: Seen, past: Past | None):
        mixed, present = self.attention(self.attention_norm(x), seen, past)
        after = x + self.post_attention_norm(mixed)
        fed = self.feed_forward(self.feed_forward_norm(x if self.parallel else after))
        return self.steer(after + self.post_feed_forward_norm(fed)), present


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
        return self.logits(hidden if last is None else hidden[:, -last:])

    def hidden(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
    ) -> Float[Array, "rows length width"]:
        """Returns what the head reads."""
        return self._read(tokens, positions_of(mask), causal(mask), mask.astype(jnp.int32))[0]

    def states(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
    ) -> Float[Array, "layers rows length width"]:
        """Returns the residual stream behind every block."""
        found: list[Array] = []
        self._read(tokens, positions_of(mask), causal(mask), mask.astype(jnp.int32), found)
        return jnp.stack(found)

    def packed_logits(
        self, tokens: Int[Array, "rows length"], segments: Int[Array, "rows length"]
    ) -> Float[Array, "rows length vocab"]:
        """Returns the logits after every token of rows that hold several texts, numbered from 1."""
        length = tokens.shape[1]
        slots = jnp.arange(length)
        starts = jnp.diff(segments, axis=1, prepend=0) != 0
        first = jax.lax.cummax(jnp.where(starts, slots, 0), axis=1)
        own = segments[:, :, None] == segments[:, None]
        return self.logits(self._read(tokens, slots - first, own & causal(segments > 0), segments)[0])

    def logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        """Returns what the head makes of its input."""
        return softcapped(vocabulary_logits(hidden, self.embed, self.head), self.config.logit_softcap)

    def completion_logits(
        self,
        tokens: Int[Array, "rows length"],
        mask: Bool[Array, "rows length"],
        count: int,
        starts: Int[Array, " rows"] | None = None,
    ) -> Float[Array, "rows count vocab"]:
        """Returns the logits that each of `count` tokens was drawn from: the last, or those from `starts` on."""
        return self.logits(self.completion_hidden(tokens, mask, count, starts))

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
        config, length = self.config, tokens.shape[1]
        kernel = choose(
            config.attention,
            platform_of(tokens),
            length,
            config.head_dim,
            config.dtype,
            config.attention_softcap,
        )
        if length > WHOLE and kernel != "splash":
            return self._prefill_pieces(tokens, mask)
        _, present = self._read(tokens, positions_of(mask), causal(mask), mask.astype(jnp.int32))
        return new_cache(present, mask, config.windows, config.kv_cache)

    def _prefill_pieces(self, tokens, mask) -> KVCache:
        """Returns the cache of tokens that are read piece by piece, each with those before it in the cache."""
        config, (rows, length) = self.config, tokens.shape
        count = -(-length // PIECE)
        size = -(-length // count)
        pad = count * size - length
        tokens, mask = (jnp.pad(each, ((0, 0), (pad, 0))) for each in (tokens, mask))
        pieces = [a.reshape(rows, count, size).swapaxes(0, 1) for a in (tokens, mask, positions_of(mask))]

        def read(cache: KVCache, piece) -> tuple[KVCache, None]:
            tokens, mask, positions = piece
            slots = cache.index[:, None] + jnp.arange(size)
            own = causal(mask)

            def seen(angles, window):
                return Seen(angles, visible(cache, slots, window), in_window(own, window))

            past = tuple(map(Past, cache.keys, cache.values))
            return store_piece(cache, self._trunk(tokens, positions, seen, past)[1], mask), None

        shape = rows, config.num_kv_heads, count * size, config.head_dim
        empty = empty_cache(shape, config.dtype, config.num_layers, config.windows, config.kv_cache)
        return drop_first(jax.lax.scan(read, empty, pieces)[0], pad, config.windows)

    def step(
        self, token: Int[Array, " rows"], position: Int[Array, " rows"], cache: KVCache, recent: Recent
    ) -> tuple[Float[Array, "rows vocab"], Recent]:
        """Returns the logits after one more token, and `recent` with it."""
        logits, recent = self.steps(token[:, None], position[:, None], cache, recent)
        return logits[:, 0], recent

    def steps(
        self,
        tokens: Int[Array, "rows length"],
        positions: Int[Array, "rows length"],
        cache: KVCache,
        recent: Recent,
    ) -> tuple[Float[Array, "rows length vocab"], Recent]:
        """Returns the logits after each of several more tokens, and `recent` with them."""
        hidden, recent = self.hidden_steps(tokens, positions, cache, recent)
        return self.logits(hidden), recent

    def hidden_steps(
        self,
        tokens: Int[Array, "rows length"],
        positions: Int[Array, "rows length"],
        cache: KVCache,
        recent: Recent,
    ) -> tuple[Float[Array, "rows length width"], Recent]:
        """Returns what the head reads after each of several more tokens, and `recent` with them."""
        past = tuple(map(Past, cache.keys, cache.values, recent.keys, recent.values))
        length, room = tokens.shape[1], recent.keys[0].shape[2]
        places = recent.places(length)
        behind = (places[..., None] - jnp.arange(room)).reshape(-1, length, room)

        def seen(angles, window):
            new = (behind >= 0) & (behind < window if window else True)
            return Seen(angles, visible(cache, cache.index[:, None] + places, window), new, recent.count)

        hidden, present = self._trunk(tokens, positions, seen, past)
        keys, values = zip(*present, strict=True)
        return hidden, Recent(keys, values, recent.count + length)

    def _read(self, tokens, positions, mask, segments, states: list | None = None):
        """Returns what tokens leave that see each other where `mask` lets them."""

        def seen(angles, window):
            return Seen(angles, in_window(mask, window), segments=segments)

        return self._trunk(tokens, positions, seen, states=states)

    def _trunk(self, tokens, positions, see: Callable[[Array | None, int], Seen], past=None, states=None):
        config = self.config
        x = self.embed(tokens)
        if config.embedding_scale != 1:
            x *= jnp.asarray(config.embedding_scale, x.dtype)
        if config.rope is None:
            # What is read beyond the context stands behind all that counts, and must be finite: 0 · NaN is not 0.
            x += self.positions(jnp.minimum(positions, config.max_positions - 1))
        kinds = [(block.attention.rope, config.window(layer)) for layer, block in enumerate(self.blocks)]
        of_kind = {kind: see(_angles(config, kind[0], positions), kind[1]) for kind in dict.fromkeys(kinds)}
        # With a cache there are no gradients to save activations for.
        seen, call = [of_kind[kind] for kind in kinds], block_caller(config.remat and past is None)
        if config.scan and past is None and states is None:
            x, present = scan_blocks(self.blocks, x, seen, call)
            return self.norm(x), present
        present = []
        for layer, block in enumerate(self.blocks):
            x, keys_and_values = call(block, x, seen[layer], past and past[layer])
            present.append(keys_and_values)
            if states is not None:
                states.append(x)
        return self.norm(x), present


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
