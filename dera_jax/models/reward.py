"""Reward models: a trunk and a head that gives one number for a whole text."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.common.checks import check_choice
from dera_jax.models.decoder import Decoder
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.linear import Linear, WeightsConfig
from dera_jax.models.t5 import T5, Stack
from dera_jax.models.t5_config import T5Config

HEADS = ("last", "encoder", "decoder", "each")


@dataclass(frozen=True)
class RewardConfig(WeightsConfig):
    """Shape and kind of a reward model."""

    trunk: DecoderConfig | T5Config
    """Its own head is not there."""
    head: str = "last"
    """What is read: a decoder-only model's last token that is not `pad_token`; the mean of T5's encoder;
    T5's decoder at the last token, with a hidden layer of its own (`T5ForSequenceClassification`); or, by a
    value model, what either has before each token of a completion."""
    pad_token: int | None = None
    """Id that transformers takes for padding wherever it ends a text, EOS though it may be; None: no id."""

    def __post_init__(self):
        super().__post_init__()
        check_choice("head", self.head, HEADS)

    @property
    def num_heads(self) -> int:
        """Attention heads of the trunk."""
        return self.trunk.num_heads


class Encoder(nnx.Module):
    """T5's encoder by itself."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        dtype = config.dtype
        self.embed = nnx.Embed(config.vocab_size, config.width, param_dtype=dtype, dtype=dtype, rngs=rngs)
        self.encoder = Stack(config, False, rngs)

    encode = T5.encode


class RewardModel(nnx.Module):
    """One number for a text: `…ForSequenceClassification` with one label."""

    def __init__(self, config: RewardConfig, rngs: nnx.Rngs):
        decoder = T5 if isinstance(config.trunk, T5Config) else Decoder
        self.trunk = (Encoder if config.head == "encoder" else decoder)(config.trunk, rngs)
        width, dtype = config.trunk.width, config.dtype
        with_layer = config.head == "decoder"
        self.dense = Linear(width, width, dtype, rngs, bias=True) if with_layer else None
        self.score = Linear(width, 1, dtype, rngs, bias=with_layer)
        self.head, self.pad_token = config.head, config.pad_token

    def __call__(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
    ) -> Float[Array, " rows"]:
        """Returns the reward of left-padded texts."""
        if self.head == "encoder":
            encoded = jnp.where(mask[..., None], self.trunk.encode(tokens, mask), 0)
            read = encoded.sum(axis=1, dtype="float32") / jnp.maximum(mask.sum(axis=1), 1)[:, None]
            read = read.astype(encoded.dtype)
        else:
            hidden = self.trunk.hidden(tokens, mask)
            last = _last(tokens, mask, self.pad_token) if self.head == "last" else -1
            read = hidden[jnp.arange(len(tokens)), last]
        return self.judge(read)

    def judge(self, read: Float[Array, "rows width"]) -> Float[Array, " rows"]:
        """Returns what the head says of what it reads, one vector for a text."""
        if self.dense is not None:
            read = jnp.tanh(self.dense(read))
        return self.score(read, "float32")[:, 0]

    def completion_values(
        self, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"], count: int
    ) -> Float[Array, "rows count"]:
        """Returns the value before each of the last `count` tokens is drawn."""
        return self.score(self.trunk.completion_hidden(tokens, mask, count), "float32")[..., 0]


def _last(
    tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"], pad_token: int | None
) -> Int[Array, " rows"]:
    """Returns the position of each text's last token that is no padding; its first one where all are."""
    real = mask if pad_token is None else mask & (tokens != pad_token)
    last = tokens.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    return jnp.where(real.any(axis=1), last, jnp.argmax(mask, axis=1))
