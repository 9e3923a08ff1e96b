"""Steering vectors from contrastive pairs: the mean difference of hidden states, and how well it tells pairs apart."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.data.batches import make_batch
from dera_jax.data.buckets import padded_length
from dera_jax.data.examples import Pair
from dera_jax.devices.mesh import mesh_of, rows_for
from dera_jax.devices.placement import shard_rows
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.policies.policy import Policy

AT = ("last", "mean")
"""Whose hidden states are taken: the completion's last token, or all of its tokens' mean."""


class LayerFigures(NamedTuple):
    """What a layer's vector is like."""

    layer: int
    norm: float
    """Length of the vector."""
    accuracy: float | None
    """Share of held-out pairs whose chosen completion projects further along it; None where none are held out."""
    effect: float | None
    """Mean of held-out differences' projections by their standard deviation; None where there are fewer than two."""


def pair_differences(
    policy: Policy,
    pairs: Sequence[Pair],
    rows: int = 8,
    at: str = "last",
    seen: Callable[[int], object] = lambda _: None,
) -> Float[np.ndarray, "pairs layers width"]:
    """Returns h(chosen) − h(rejected) of each pair, h the residual stream behind every block.

    Completions are read without the token that ends them.

    Args:
      rows: texts read at a time.
      at: one of `AT`.
      seen: is told how many pairs were read since it was last told.

    Raises:
      ValueError: an encoder-decoder, or states that are not finite.
    """
    if not isinstance(policy.config, DecoderConfig) or policy.value_of is not None:
        raise ValueError(f"{policy.name}: expected a decoder-only language model to make steering vectors of")
    texts = [(pair.prompt, said[:-1] or said) for pair in pairs for said in (pair.chosen, pair.rejected)]
    found: list[np.ndarray] = []
    for states in read_states(policy, texts, max(2, rows - rows % 2), at):
        found.append(states[::2] - states[1::2])
        seen(len(found[-1]))
    differences = np.concatenate(found)
    if not np.isfinite(differences).all():
        raise ValueError(f"{policy.name}: hidden states are not finite")
    return differences


def mean_difference(
    differences: Float[np.ndarray, "pairs layers width"],
) -> Float[np.ndarray, "layers width"]:
    """Returns v_n = mean over pairs of h_n(chosen) − h_n(rejected).

    Source: Panickssery et al. 2023, arXiv:2312.06681, §3.
    """
    return differences.mean(axis=0, dtype=np.float64).astype(np.float32)


def layer_figures(
    vectors: Float[np.ndarray, "layers width"], held_out: Float[np.ndarray, "pairs layers width"]
) -> list[LayerFigures]:
    """Returns for each layer how well its vector separates pairs that it was not made from."""
    projected = np.einsum("plw,lw->lp", held_out.astype(np.float64), vectors.astype(np.float64))
    figures = []
    for layer, (vector, each) in enumerate(zip(vectors, projected, strict=True)):
        spread = each.std(ddof=1) if len(each) > 1 else 0.0
        figures.append(
            LayerFigures(
                layer,
                float(np.linalg.norm(vector)),
                float((each > 0).mean()) if len(each) else None,
                float(each.mean() / spread) if spread > 0 else None,
            )
        )
    return figures


def best_layer(figures: Sequence[LayerFigures]) -> int:
    """Returns the layer that separates held-out pairs best; of equal ones, that with the larger effect."""
    return max(figures, key=lambda f: (f.accuracy or 0.0, f.effect or 0.0)).layer


def read_states(
    policy: Policy, texts: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int, at: str
) -> Iterator[Float[np.ndarray, "texts layers width"]]:
    """Yields the residual stream behind every block, for a batch of texts after the other.

    Args:
      texts: prompts, and the completions at whose tokens it is taken.
      at: one of `AT`.
    """
    mesh = mesh_of(policy.params)
    # A mesh may need more rows than texts are read at a time: then some are empty, and texts stay with their pairs.
    padded = rows_for(mesh, rows)
    for start in range(0, len(texts), rows):
        part = texts[start : start + rows]
        prompts, said = zip(*part, strict=True)
        batch = make_batch(prompts, said, padded, tight=True, bucket=padded_length)
        ends = np.array([[len(p), len(p) + len(c)] for p, c in part] + [[0, 1]] * (padded - len(part)))
        places = np.arange(batch.tokens.shape[1])
        first = ends[:, :1] if at == "mean" else ends[:, 1:] - 1
        chosen = (places >= first) & (places < ends[:, 1:])
        given = batch.tokens, batch.mask, chosen
        states = _states(policy.config, policy.params, *(shard_rows(given, mesh) if mesh else given))
        yield np.asarray(jax.device_get(states))[: len(part)]


@partial(jax.jit, static_argnames="config")
def _states(
    config: models.ModelConfig,
    params: PyTree,
    tokens: Int[Array | np.ndarray, "rows length"],
    mask: Bool[Array | np.ndarray, "rows length"],
    chosen: Bool[Array | np.ndarray, "rows length"],
) -> Float[Array, "rows layers width"]:
    states = models.bind(config, params).states(jnp.asarray(tokens), jnp.asarray(mask)).astype(jnp.float32)
    weights = chosen / jnp.sum(chosen, axis=1, keepdims=True)
    return jnp.einsum("lrtw,rt->rlw", states, weights.astype(jnp.float32), precision="highest")
