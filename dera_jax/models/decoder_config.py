"""What decoder-only transformers differ in: every architecture is a `DecoderConfig`."""

from dataclasses import dataclass

from dera_jax.common.checks import check_choice, check_count, check_number
from dera_jax.models.layers import ACTIVATIONS
from dera_jax.models.linear import WeightsConfig
from dera_jax.models.rope import Rope


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

    encoder_decoder = False
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
