"""The linear map that every model is built from: full or quantized, with or without a low-rank adapter."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dera_jax.configs import check_choice, check_count

PRECISION = jax.lax.Precision.HIGHEST
"""Of matrix products: float32 is float32 on accelerators too. Other types are not affected."""

QUANTIZATIONS = ("int8", "nf4")
NF4_BLOCK = 64
"""Inputs that share one scale."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of one linear map: W + scale · A B (LoRA, arXiv:2106.09685)."""

    path: str
    """Of the linear map, such as `blocks.3.attention.query`."""
    rank: int
    scale: float
    """α/rank, or α/√rank with rank stabilization."""

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
    remat: bool = False
    """Whether gradients compute the activations of every block again instead of keeping them."""

    def __post_init__(self):
        if self.quantization is not None:
            check_choice("quantization", self.quantization, QUANTIZATIONS)


class Linear(nnx.Module):
    """x W, plus b, plus scale · (x A) B."""

    def __init__(self, inputs: int, outputs: int, dtype: str, rngs: nnx.Rngs, bias: bool = False):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype)) if bias else None
        self.dtype = dtype
        self.quantization = None
        self.adapter_scale = 0.0

    def __call__(
        self, x: Float[Array, "*rows inputs"], out_dtype: str | None = None
    ) -> Float[Array, "*rows outputs"]:
        """Returns the map of `x`, not rounded to less than `out_dtype` on its way."""
        out_dtype = out_dtype or self.dtype
        # What is added is added before rounding.
        exact = out_dtype if self.bias is None and not self.adapter_scale else "float32"
        y = _product(x, self._weights(), exact)
        if self.adapter_scale:
            y += self.adapter_scale * _product(
                _product(x, self.lora_a[...], self.dtype), self.lora_b[...], exact
            )
        if self.bias is not None:
            y += self.bias[...].astype(exact)
        return y.astype(out_dtype)

    def adapt(self, rank: int, scale: float, rngs: nnx.Rngs) -> None:
        """Adds an adapter that changes nothing yet: A is random, B is 0."""
        inputs, outputs = self.kernel.shape
        start = nnx.initializers.lecun_normal()(rngs.params(), (inputs, rank), self.dtype)
        self.lora_a = nnx.Param(start)
        self.lora_b = nnx.Param(jnp.zeros((rank, outputs), self.dtype))
        self.adapter_scale = scale

    def quantize(self, kind: str) -> None:
        """Replaces the weights by what `quantize_kernel` makes of them."""
        parts = quantize_kernel(self.kernel[...], kind)
        self.kernel, self.kernel_scale = nnx.Param(parts["kernel"]), nnx.Param(parts["kernel_scale"])
        self.quantization = kind

    def _weights(self) -> Float[Array, "inputs outputs"]:
        if self.quantization is None:
            return self.kernel[...]
        import qwix  # here, because it takes a second to import

        # XLA fuses this into the product: what is read from memory is the quantized weights.
        quantized = qwix.QArray(self.kernel[...], self.kernel_scale[...], qtype=self.quantization)
        return qwix.dequantize(quantized).astype(self.dtype)


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
