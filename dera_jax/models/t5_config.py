"""What makes a T5: sizes, activations, which token starts a completion."""

from dataclasses import dataclass

from dera_jax.common.checks import check_choice, check_count, check_number
from dera_jax.models.layers import ACTIVATIONS
from dera_jax.models.linear import WeightsConfig


@dataclass(frozen=True)
class T5Config(WeightsConfig):
    """Shape and kind of a T5."""

    vocab_size: int
    """Rows of the embedding; at least the tokenizer's size."""
    width: int
    """Size of the residual stream."""
    mlp_width: int
    """Hidden size of the feed-forward block."""
    num_layers: int
    """Of the decoder."""
    num_encoder_layers: int
    num_heads: int
    head_dim: int
    buckets: int = 32
    """Of distances between tokens, each with a bias of its own in every head."""
    max_distance: int = 128
    """In tokens; what is as far apart or farther shares a bucket."""
    norm_epsilon: float = 1e-6
    activation: str = "relu"
    gated: bool = False
    """Whether the feed-forward block is down(activation(gate) · linear), not down(activation(up))."""
    tie_embeddings: bool = True
    """Whether the head is the embedding, transposed."""
    scale_outputs: bool = True
    """Whether logits are divided by √width."""
    start_token: int = 0
    """What the decoder is fed first."""

    encoder_decoder = True
    max_positions = 2**31 - 1
    """Tokens are told apart by their distances: there is no longest context."""
    windows = ()
    """All layers see all tokens."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("vocab_size", "width", "mlp_width", "num_layers", "num_encoder_layers", "num_heads"):
            check_count(name, getattr(self, name))
        check_count("head_dim", self.head_dim)
        check_count("buckets", self.buckets, least=4)
        check_count("max_distance", self.max_distance, least=self.buckets // 2 + 1)
        check_number("norm_epsilon", self.norm_epsilon, 0.0, 1.0)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_count("start_token", self.start_token, least=0)

    @property
    def num_kv_heads(self) -> int:
        """Every head has its own keys and values."""
        return self.num_heads
