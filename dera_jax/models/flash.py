"""Attention of whole texts by the kernels of accelerators, which hold no matrix of scores.

`splash` is for TPUs, `cudnn` for GPUs of Nvidia; what they do not take goes through `attend_causal`. A single
token's attention is bound by reading the cache, and needs none of them.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from dera_jax.models.attention import attend_causal

KERNELS = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
"""What `auto` takes, by platform."""
SHORTEST = 512
"""Tokens from which on scores are worth avoiding."""
TILE = 128
"""Tokens, which texts of the kernels have a multiple of."""
LARGEST_BLOCK = 512
"""Of queries and keys, in tokens."""
INTERPRET = False
"""Whether splash runs as plain operations, on any platform; for tests."""
CUDNN = "cudnn"


def choose(asked: str, platform: str, length: int, head_dim: int, dtype: str, softcap: float) -> str:
    """Returns how texts are attended to: einsum, splash or cudnn.

    Args:
      asked: as in `WeightsConfig.attention`.
      platform: that it will run on.
      length: tokens of a text, padding included.
    """
    kernel = KERNELS.get(platform, "einsum") if asked == "auto" else asked
    # Float32 is float32 on accelerators too: kernels would round it.
    fits = {
        "splash": dtype == "bfloat16",
        "cudnn": dtype in ("bfloat16", "float16") and not softcap and head_dim <= 128 and head_dim % 8 == 0,
    }
    return kernel if length >= SHORTEST and length % TILE == 0 and fits.get(kernel) else "einsum"


def platform_of(x: Array) -> str:
    """Returns where `x` will be computed: on its mesh, or where everything is."""
    device = getattr(jax.typeof(x).sharding.mesh, "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def attend_text(
    asked: str,
    query: Float[Array, "rows heads length head_dim"],
    key: Float[Array, "rows kv_heads length head_dim"],
    value: Float[Array, "rows kv_heads length head_dim"],
    mask: Bool[Array, "rows length length"],
    segments: Int[Array, "rows length"],
    window: int,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "rows heads length head_dim"]:
    """Returns what `attend_causal` does at real tokens; what padding attends to is up to the kernel.

    Args:
      mask: causal, of the window and of the own segment.
      segments: numbers of texts, 0 being padding: a token sees its own text only.
      window: positions that a token sees, its own included; 0 is all.
    """
    *_, length, head_dim = query.shape
    kernel = choose(asked, platform_of(query), length, head_dim, query.dtype.name, softcap)
    if kernel == "splash":
        return _splash(query, key, value, segments, window, scale, softcap)
    if kernel == "cudnn":
        there = (each.swapaxes(1, 2) for each in (query, key, value))
        mixed = jax.nn.dot_product_attention(
            *there, mask=mask[:, None], scale=scale, is_causal=True, implementation=CUDNN
        )
        return mixed.swapaxes(1, 2)
    return attend_causal(query, key, value, mask, scale, softcap)


def _splash(query, key, value, segments, window: int, scale: float, softcap: float):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    def attend(query, key, value, segments):
        heads, length, _ = query.shape[1:]
        kernel = _kernel(heads, length, window, softcap, INTERPRET)
        return jax.vmap(kernel)(query * scale, key, value, SegmentIds(segments, segments))

    mesh = jax.typeof(query).sharding.mesh
    if mesh.empty or mesh.size == 1:
        return attend(query, key, value, segments)
    # The compiler does not split what it cannot look into.
    rows, heads = (
        axis if query.shape[n] % mesh.shape[axis] == 0 else None for n, axis in enumerate(mesh.axis_names)
    )
    if heads and key.shape[1] % mesh.shape[heads]:
        key, value = (jnp.repeat(each, query.shape[1] // key.shape[1], axis=1) for each in (key, value))
    each = PartitionSpec(rows, heads)
    split = jax.shard_map(
        attend, mesh=mesh, in_specs=(each, each, each, PartitionSpec(rows)), out_specs=each, check_vma=False
    )
    return split(query, key, value, segments)


@lru_cache
def _kernel(heads: int, length: int, window: int, softcap: float, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in range(LARGEST_BLOCK, 0, -TILE) if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    shape = length, length
    mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
    # Not as part of what is traced when it is first asked for.
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
            attn_logits_soft_cap=softcap or None,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
