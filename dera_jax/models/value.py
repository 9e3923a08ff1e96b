"""Value heads: a decoder-only model that says what every next word is worth in the place of its logit."""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dera_jax.models.decoder import Decoder
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.layers import vocabulary_logits
from dera_jax.models.linear import Linear

HEAD = "value_head"
"""Name of the head among the parameters; all others are the language model's."""


@dataclass(frozen=True)
class ValueConfig(DecoderConfig):
    """Shape and kind of a language model with a value head."""


def value_config(config: DecoderConfig) -> ValueConfig:
    """Returns the configuration of a language model with a value head."""
    return ValueConfig(**{field.name: getattr(config, field.name) for field in fields(DecoderConfig)})


class ValueHead(nnx.Module):
    """The part that is trained: q(h) = W₂ silu(W₁ h + c₁) + c₂  and  b(h) = w · h + c."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, dtype = config.width, config.dtype
        self.inner = Linear(width, width, dtype, rngs, bias=True)
        self.outer = Linear(width, width, dtype, rngs, bias=True)
        self.level = Linear(width, 1, dtype, rngs, bias=True)

    def __call__(
        self, hidden: Float[Array, "*rows width"]
    ) -> tuple[Float[Array, "*rows width"], Float[Array, "*rows 1"]]:
        """Returns q(h) and b(h)."""
        return self.outer(jax.nn.silu(self.inner(hidden))), self.level(hidden, "float32")


class ValueModel(Decoder):
    """V(h, v) = q(h) · E_v + b(h),  E the language model's output embedding, h what its own head reads."""

    def __init__(self, config: ValueConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.value_head = ValueHead(config, rngs)

    def logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        """Returns the value of every next word, in float32."""
        query, level = self.value_head(hidden)
        return vocabulary_logits(query, self.embed, self.head) + level

    def language_logits(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        """Returns the language model's own logits."""
        return super().logits(hidden)

    def last_value(
        self,
        tokens: Int[Array, "rows length"],
        mask: Bool[Array, "rows length"],
        last: Int[Array, " rows"],
    ) -> Float[Array, " rows"]:
        """Returns V of each row's next word `last` after its left-padded tokens."""
        return self.judge(self.hidden(tokens, mask)[:, -1], last)

    def judge(self, hidden: Float[Array, "rows width"], words: Int[Array, " rows"]) -> Float[Array, " rows"]:
        """Returns V of one next word of each row."""
        return self.logits(hidden)[jnp.arange(len(words)), words]
