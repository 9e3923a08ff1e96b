"""The linear map that every model is built from: full or quantized, with or without a low-rank adapter."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt4

from dera_jax.common.checks import check_choice, check_count
from dera_jax.common.choices import ATTENTIONS, KV_CACHES, QUANTIZATIONS

PRECISION = jax.lax.Precision.HIGHEST
"""Of matrix products: float32 is float32 on accelerators too. Other types are not affected."""
NF4_BLOCK = 64
"""Inputs that share one scale."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""Values of the 16 codes (Dettmers et al., "QLoRA", arXiv:2305.14314, appendix E)."""
FEW_ROWS = 64
"""Up to so many rows at a time, as in decoding, weights of several scales are not restored."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of one linear map: W + scale · A B (LoRA, arXiv:2106.09685)."""

    path: str
    """Of the linear map, such as `blocks.3.attention.query`."""
    rank: int
    scale: float
    """α/rank, or α/√rank with rank stabilization."""
    member: int = 0
    """Whose it is, of the models that share the map's weights."""

    def __post_init__(self):
        check_count("rank", self.rank)


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """How a model's parameters are held, whatever its architecture."""

    dtype: str = "float32"
    """Of parameters and activations; logits are float32 always."""
    quantization: str | None = None
    """Of the linear maps in the blocks: int8 (one scale per output) or nf4 (one per output and 64 inputs)."""
    adapters: tuple[Adapter, ...] = ()
    members: int = 1
    """Models that share all weights but their adapters: each has every `members`-th row of what is read."""
    steered: tuple[int, ...] = ()
    """Which of the members have vectors behind their blocks; (0,) is a model by itself that has."""
    remat: bool = False
    """Whether gradients compute the activations of every block again instead of keeping them."""
    scan: bool = False
    """Whether blocks that read all tokens at once are a loop: compiled once, for a copy of their parameters."""
    attention: str = "auto"
    """Of whole texts: einsum, splash (TPU), cudnn (GPU), or auto, by platform; einsum where a kernel does not fit."""
    kv_cache: str = "auto"
    """How keys and values are kept while decoding: auto (as activations), bfloat16, or int8 with a scale for each."""

    def __post_init__(self):
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("kv_cache", self.kv_cache, KV_CACHES)
        if self.quantization is not None:
            check_choice("quantization", self.quantization, QUANTIZATIONS)


class Shapes(nnx.Rngs):
    """In the place of random numbers where shapes are all that is asked for."""

    def params(self) -> Array:
        """Returns the key of any parameter."""
        return jax.random.key(0)


def drawn(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: str) -> Float[Array, "inputs outputs"]:
    """Returns the random weights that a linear map begins with."""
    if isinstance(rngs, Shapes):  # to trace the draws of a deep model takes a second
        return jnp.zeros(shape, dtype)
    return nnx.initializers.lecun_normal()(rngs.params(), shape, dtype)


class Linear(nnx.Module):
    """x W, plus b, plus scale · (x A) B."""

    def __init__(self, inputs: int, outputs: int, dtype: str, rngs: nnx.Rngs, bias: bool = False):
        self.kernel = nnx.Param(drawn(rngs, (inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype)) if bias else None
        self.dtype = dtype
        self.quantization = None
        self.members, self.adapted = 1, ()

    def __call__(
        self, x: Float[Array, "*rows inputs"], out_dtype: str | None = None
    ) -> Float[Array, "*rows outputs"]:
        """Returns the map of `x`, not rounded to less than `out_dtype` on its way."""
        out_dtype = out_dtype or self.dtype
        # What is added is added before rounding.
        exact = out_dtype if self.bias is None and not self.adapted else "float32"
        y = self._weighted(x, exact)
        for name, member, scale in self.adapted:
            a, b = (getattr(self, f"lora_{letter}{name}")[...] for letter in "ab")
            low = _product(x, a, self.dtype)
            if self.members > 1:
                # 0 is added to the rows of others: to take the own ones out would copy all of them.
                rows = jnp.arange(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 1))
                low = jnp.where(rows % self.members == member, low, 0)
            y += scale * _product(low, b, exact)
        if self.bias is not None:
            y += self.bias[...].astype(exact)
        return y.astype(out_dtype)

    def adapt(self, adapter: Adapter, members: int, rngs: nnx.Rngs) -> None:
        """Adds an adapter that changes nothing yet: A is random, B is 0."""
        inputs, outputs = self.kernel.shape
        name = str(adapter.member) if members > 1 else ""
        setattr(self, f"lora_a{name}", nnx.Param(drawn(rngs, (inputs, adapter.rank), self.dtype)))
        setattr(self, f"lora_b{name}", nnx.Param(jnp.zeros((adapter.rank, outputs), self.dtype)))
        self.members, self.adapted = members, (*self.adapted, (name, adapter.member, adapter.scale))

    def quantize(self, kind: str) -> None:
        """Replaces the weights by what `quantize_kernel` makes of them."""
        parts = quantize_kernel(self.kernel[...], kind)
        self.kernel, self.kernel_scale = nnx.Param(parts["kernel"]), nnx.Param(parts["kernel_scale"])
        self.quantization = kind

    def _weighted(self, x: Float[Array, "*rows inputs"], out_dtype: str) -> Float[Array, "*rows outputs"]:
        if self.quantization is None:
            return _product(x, self.kernel[...], out_dtype)
        scale, codes = self.kernel_scale[...], self.kernel[...]
        values = codes.astype(self.dtype) if self.quantization == "int8" else nf4_values(codes, self.dtype)
        blocks, outputs = scale.shape
        if blocks == 1:
            return (_product(x, values, "float32") * scale[0]).astype(out_dtype)
        if math.prod(x.shape[:-1]) > FEW_ROWS:
            weights = values.reshape(blocks, -1, outputs) * scale[:, None]
            return _product(x, weights.reshape(values.shape).astype(self.dtype), out_dtype)
        # Block by block, so that no weights have to be written to memory: what is scaled are the sums.
        parts = jnp.einsum(
            "...bi,bio->...bo",
            x.reshape(*x.shape[:-1], blocks, -1),
            values.reshape(blocks, -1, outputs),
            precision=PRECISION,
            preferred_element_type=jnp.float32,
        )
        return jnp.sum(parts * scale, axis=-2).astype(out_dtype)


def nf4_values(codes: UInt4[Array, "*shape"], dtype: str) -> Float[Array, "*shape"]:
    """Returns the numbers, from −1 to 1, that codes of four bits stand for."""
    # A tree of choices, bit by bit: XLA makes a loop over memory of a look-up, on a TPU of 60 times the bytes.
    codes = codes.astype(jnp.int32)
    values = [jnp.asarray(value, dtype) for value in NF4]
    for bit in range(4):
        chosen = (codes >> bit) & 1 == 1
        values = [jnp.where(chosen, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def quantize_kernel(kernel: Float[Array, "inputs outputs"], kind: str) -> dict[str, Array]:
    """Returns `kernel` (int8, or uint4 for nf4) and `kernel_scale` (float32), symmetric, by the largest value.

    Where 64 does not divide the inputs, all of them share a scale.
    """
    import qwix

    kernel = kernel.astype(jnp.float32)
    if kind == "int8":
        found = qwix.quantize(kernel, "int8", channelwise_axes=(1,))
    else:
        block = NF4_BLOCK if kernel.shape[0] % NF4_BLOCK == 0 else kernel.shape[0]
        found = qwix.quantize(kernel, "nf4", channelwise_axes=(1,), tiled_axes={0: block})
    return {"kernel": found.qvalue, "kernel_scale": found.scale}


def _product(x: Array, kernel: Array, out_dtype: str) -> Array:
    return jnp.matmul(x, kernel, precision=PRECISION, preferred_element_type=out_dtype)
