"""The parts that transformers are built from: normalization, activations, heads, logits."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from dera_jax.models.linear import PRECISION, Linear


def _exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.gelu(x, approximate=False)


def _tanh_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "gelu": _exact_gelu,
    "gelu_python": _exact_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""By their names in Hugging Face configurations."""


def block_caller(remat: bool) -> Callable:
    """Returns what calls a block with its arguments, keeping its activations for gradients or not."""
    return _call_again if remat else _call


@nnx.remat
def _call_again(block: nnx.Module, *args):
    return block(*args)


def _call(block: nnx.Module, *args):
    return _call_split(*nnx.split(block), args)


# One for all blocks of a kind and of all models that have it: each is traced but once. XLA puts it in its places.
@partial(jax.jit, static_argnames="graph")
def _call_split(graph: nnx.GraphDef, state: PyTree, args: tuple):
    return nnx.merge(graph, state)(*args)


def softcapped(x: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """Returns cap · tanh(x/cap), or `x` where there is no cap (0)."""
    return cap * jnp.tanh(x / cap) if cap else x


def split_heads(
    x: Float[Array, "rows length width"], head_dim: int
) -> Float[Array, "rows heads length head_dim"]:
    """Returns the heads' parts of `x`, heads before positions."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def join_heads(x: Float[Array, "rows heads length head_dim"]) -> Float[Array, "rows length width"]:
    """Undoes `split_heads`."""
    rows, heads, length, head_dim = x.shape
    return x.swapaxes(1, 2).reshape(rows, length, heads * head_dim)


def vocabulary_logits(
    hidden: Float[Array, "*rows width"], embed: nnx.Embed, head: Linear | None
) -> Float[Array, "*rows vocab"]:
    """Returns the logits of every word in float32, by the head or, where there is none, the embedding.

    They are not rounded to the activations' type: a mixture multiplies that rounding by |λ| + |1 − λ|.
    """
    if head is not None:
        return head(hidden, "float32")
    kernel = embed.embedding[...].T
    return jnp.matmul(hidden, kernel, precision=PRECISION, preferred_element_type=jnp.float32)


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale, computed in float32; with `unit_offset`, · (1 + scale)."""

    def __init__(self, width: int, epsilon: float, dtype: str, unit_offset: bool = False):
        self.scale = nnx.Param(jnp.zeros(width, dtype) if unit_offset else jnp.ones(width, dtype))
        self.epsilon, self.unit_offset = epsilon, unit_offset

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        exact = x.astype(jnp.float32)
        exact *= jax.lax.rsqrt(jnp.mean(exact * exact, axis=-1, keepdims=True) + self.epsilon)
        return (exact * (self.scale[...].astype(jnp.float32) + self.unit_offset)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x − mean x) / √(var x + ε) · scale + bias, computed in float32."""

    def __init__(self, width: int, epsilon: float, dtype: str):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        exact = x.astype(jnp.float32)
        exact -= jnp.mean(exact, axis=-1, keepdims=True)
        exact *= jax.lax.rsqrt(jnp.mean(exact * exact, axis=-1, keepdims=True) + self.epsilon)
        return (exact * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(
            x.dtype
        )
