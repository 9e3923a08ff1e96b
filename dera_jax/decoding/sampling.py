"""Logits to a token: temperature, top-k, top-p, greedy, and a draw that rounding does not flip."""

import math
from dataclasses import dataclass, field
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures at which logits that differ at all in float32 are 1e20 nats apart, and at which none are."""
MOST_SHARDS = 16
"""Of a vocabulary, that blocks of words are laid out for."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p"],
    meta_fields=["top_k", "greedy", "shards"],
)
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from mixed logits. None leaves a step out of the compiled program."""

    # Traced: another value needs no compilation.
    temperature: ArrayLike | None = None
    """Divides the logits; > 0. None is 1."""
    top_p: ArrayLike | None = None
    """Smallest set of words with at least this probability, in (0, 1]; after temperature and top-k."""
    # Static.
    top_k: int | None = field(default=None)
    """Number of most probable words kept; ≥ 1. Words as probable as the last are kept too."""
    greedy: bool = field(default=False)
    """Takes the most probable word."""
    shards: int = field(default=1)
    """Parts of the vocabulary that lie on different devices; changes what is sent, not what is drawn."""

    @classmethod
    def create(
        cls, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, shards: int = 1
    ) -> "Sampling":
        """Returns the sampling of a command's settings: temperature 0 is greedy, 1 costs nothing.

        So is one that float32 cannot divide by; one beyond its range is as uniform as any.
        """
        if temperature < COLDEST:
            return cls(greedy=True, shards=shards)
        return cls(
            temperature=None if temperature == 1 else min(float(temperature), HOTTEST),
            top_p=None if top_p in (None, 1) else float(top_p),
            top_k=top_k if top_k and top_k > 0 else None,
            shards=shards,
        )

    def sample(
        self, keys: Key[Array, " rows"], logits: Float[Array, "rows vocab"]
    ) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
        """Returns one word a row and its log-probability, see the function of this name."""
        return sample(keys, logits, self)


def sample(
    keys: Key[Array, " rows"], logits: Float[Array, "rows vocab"], sampling: Sampling
) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
    """Returns one word a row and its log-probability, in nats, under the distribution drawn from.

    Args:
      keys: one per row; a row's draw depends on its own key alone.
      logits: −inf where a word is forbidden; at least one is finite.
    """
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(logits.shape[0])
    logits = truncate(logits, sampling)
    blocks = block_log_partition(logits)
    word = draw(keys, logits, blocks)
    chosen = jnp.take_along_axis(logits, word[:, None], axis=-1)[:, 0]
    return word, chosen - jax.nn.logsumexp(blocks, axis=-1)


def truncate(logits: Float[Array, "rows vocab"], sampling: Sampling) -> Float[Array, "rows vocab"]:
    """Returns the logits that tokens are drawn from; words cut off are −inf.

    Temperature first, then top-k, then top-p on what is left, as Hugging Face's `generate` does.
    """
    if sampling.temperature is not None:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        top = _largest(logits, sampling.top_k, sampling.shards)
        threshold = top[:, -1:]
        if sampling.top_p is not None:
            kept = jnp.sum(logits >= threshold, axis=-1, keepdims=True)
            threshold = jnp.maximum(threshold, _nucleus_of_sorted(top, kept, sampling.top_p))
        return jnp.where(logits >= threshold, logits, -jnp.inf)
    if sampling.top_p is not None:
        return jnp.where(logits >= nucleus_by_bisection(logits, sampling.top_p), logits, -jnp.inf)
    return logits


def _largest(logits: Float[Array, "rows vocab"], count: int, shards: int) -> Float[Array, "rows count"]:
    """Returns the largest logits of each row, from the largest down."""
    rows, vocab = logits.shape
    if shards > 1 and vocab % shards == 0:
        # Of every shard its own first: only those are sent.
        parts = logits.reshape(rows, shards, -1)
        logits = jax.lax.top_k(parts, min(count, parts.shape[-1]))[0].reshape(rows, -1)
    # Behind a barrier: where only the last of them is used, the compiler would sort the vocabulary (80 times as long).
    return jax.lax.optimization_barrier(jax.lax.top_k(logits, count)[0])


def _nucleus_of_sorted(
    top: Float[Array, "rows k"], kept: Int[Array, "rows 1"], top_p: ArrayLike
) -> Float[Array, "rows 1"]:
    """Returns the smallest logit of the nucleus, `top` being sorted from the largest down.

    Args:
      kept: words that there are; those beyond `top` are as probable as its last.
    """
    parts = jnp.exp(top - top[:, :1])
    total = jnp.sum(parts, axis=-1, keepdims=True) + (kept - top.shape[-1]) * parts[:, -1:]
    probabilities = parts / total
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.min(jnp.where(before < top_p, top, jnp.inf), axis=-1, keepdims=True)


def nucleus_by_bisection(logits: Float[Array, "rows vocab"], top_p: ArrayLike) -> Float[Array, "rows 1"]:
    """Returns a threshold that exactly the nucleus reaches, without sorting the vocabulary.

    The mass at or above a threshold falls as it rises. Bisection keeps `low` where that mass is
    at least top_p; float32 has 2³² numbers, so 32 halvings of their ordered bit patterns are exact.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(
            jnp.where(probabilities >= middle_value(middle), probabilities, 0), -1, keepdims=True
        )
        enough = enough >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    def middle_value(bits):
        # Bit patterns of non-negative floats are ordered as the floats are.
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    rows = logits.shape[0]
    low = jnp.zeros((rows, 1), jnp.int32)
    high = jnp.full((rows, 1), 0x3F800001, jnp.int32)  # just above 1.0
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, high))
    # The smallest logit kept; at least the largest of all, whatever rounding did to the sum.
    kept = jnp.where(probabilities >= middle_value(low), logits, jnp.inf)
    return jnp.minimum(jnp.min(kept, -1, keepdims=True), jnp.max(logits, -1, keepdims=True))


@cache
def block_size(vocab: int) -> int:
    """Returns how many words are drawn from as one: near √vocab, for the fewest random numbers.

    Blocks end where shards of the vocabulary do, if any number of words does: 32 000 words are 160 blocks
    of 200, ten on each of 16 shards, and nothing has to be sent to add up a block.
    """
    root = math.sqrt(vocab)
    shard = vocab // math.gcd(vocab, MOST_SHARDS)
    even = min(
        (n for n in range(1, shard + 1) if shard % n == 0), key=lambda n: round(abs(math.log(n / root)), 9)
    )
    return even if root / 1.5 <= even <= root * 4 else 1 << round(math.log2(root))


def block_log_partition(logits: Float[Array, "rows vocab"]) -> Float[Array, "rows blocks"]:
    """Returns the logsumexp of each run of `block_size` words, the last filled with −inf."""
    rows, vocab = logits.shape
    size = block_size(vocab)
    filled = jnp.pad(logits, ((0, 0), (0, -vocab % size)), constant_values=-jnp.inf)
    return jax.nn.logsumexp(filled.reshape(rows, -1, size), axis=-1)


def draw(
    keys: Key[Array, " rows"],
    logits: Float[Array, "rows vocab"],
    block_partition: Float[Array, "rows blocks"],
) -> Int[Array, " rows"]:
    """Returns one word a row from softmax(logits), by the Gumbel trick in two stages.

    A block is drawn by its logsumexp, then a word in it: about 2√vocab random numbers a row
    instead of one per word. The largest of perturbed logits changes only if the two largest are as
    close as the rounding error, unlike the inverse of a cumulative sum.

    Args:
      keys: one per row; a row's draw depends on its own key alone.
      logits: −inf where a word is cut off; at least one is finite.
      block_partition: `block_log_partition(logits)`.
    """
    vocab = logits.shape[1]
    blocks, size = block_partition.shape[1], block_size(vocab)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (blocks + size,), jnp.float32))(keys)
    block = jnp.argmax(block_partition + noise[:, :blocks], axis=-1)
    words = block[:, None] * size + jnp.arange(size)
    inside = jnp.take_along_axis(logits, jnp.minimum(words, vocab - 1), axis=-1)
    inside = jnp.where(words < vocab, inside, -jnp.inf)
    word = jnp.argmax(inside + noise[:, blocks:], axis=-1)
    return (block * size + word).astype(jnp.int32)
