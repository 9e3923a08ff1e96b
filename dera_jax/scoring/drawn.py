"""Drawn tokens as evidence of how they were decoded: what `analysis.decoding_law` asks of the models' logits."""

from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dera_jax.analysis.decoding_law import MASSES, Counts, Kept
from dera_jax.analysis.newton import Score
from dera_jax.scoring import evidence
from dera_jax.scoring.places import Block, Places

NONE = 2**30
"""A top-k that keeps all."""


class Drawn:
    """The tokens of places, an `analysis.decoding_law.Evidence`; each question is one pass over the logits."""

    def __init__(self, places: Places):
        """Takes the places, at least one."""
        if not len(places):
            raise ValueError("expected completions with at least one token, found none")
        self.places = places

    @property
    def tokens(self) -> int:
        """Their number."""
        return len(self.places)

    @property
    def groups(self) -> Int[np.ndarray, " tokens"]:
        """Of each token, see `Places`."""
        return self.places.groups

    def scorer(self, kept: Kept) -> Callable[[np.ndarray], Score]:
        """Returns what gives the score at a θ, of tokens in a set of words."""
        at = jnp.asarray(kept.theta, jnp.float32)
        cut = kept.top_k is not None or kept.top_p is not None
        least = [
            evidence.least_kept(block.logits, at, *_cut(kept)) if cut else _none(block)
            for block in self.places.blocks()
        ]

        def score(theta: np.ndarray) -> Score:
            value, gradients, information = 0.0, [], np.zeros((2, 2))
            given = jnp.asarray(theta, jnp.float32)
            for block, bound in zip(self.places.blocks(), least, strict=True):
                found = jax.device_get(
                    evidence.moments(block.logits, block.tokens, block.there, given, at, bound)
                )
                value += found.logprob.sum(dtype=np.float64)
                gradients.append(found.gradient[block.there].astype(np.float64))
                information += found.covariance.sum(axis=0, dtype=np.float64)
            return Score(float(value), np.concatenate(gradients), information)

        return score

    def counts(self, kept: Kept) -> tuple[Counts, Counts]:
        """Returns what each top-k and each top-p holds."""
        theta, grid = jnp.asarray(kept.theta, jnp.float32), jnp.asarray(MASSES, jnp.float32)
        found = [
            jax.device_get(evidence.tails(block.logits, block.tokens, block.there, theta, *_cut(kept), grid))
            for block in self.places.blocks()
        ]
        by_k, by_p = (
            Counts(
                np.sum([each[which].log_mass for each in found], axis=0, dtype=np.float64),
                np.sum([each[which].outside for each in found], axis=0),
            )
            for which in (0, 1)
        )
        return by_k, by_p

    def greedy(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns between which λ each token is the most probable word."""
        return self._once[0], self._once[1]

    def divergence(self) -> float:
        """Returns the mean KL(aligned ‖ reference), in nats per token."""
        return float(self._once[2].mean())

    @cached_property
    def _once(self) -> np.ndarray:
        """The figures of each token that hang on no θ.

        Raises:
          ValueError: logits that are not finite.
        """
        found = []
        for block in self.places.blocks():
            low, high = evidence.most_probable(block.logits, block.tokens)
            each = jax.device_get(jnp.stack([low, high, evidence.divergence(block.logits)]))
            found.append(each[:, block.there].astype(np.float64))
        figures = np.concatenate(found, axis=1)
        if not np.isfinite(figures[2]).all() or np.isnan(figures).any():
            raise ValueError("the models' logits are not finite where the completions were drawn")
        return figures


def _cut(kept: Kept) -> tuple[jax.Array, jax.Array]:
    return (
        jnp.int32(NONE if kept.top_k is None else kept.top_k),
        jnp.float32(1.0 if kept.top_p is None else kept.top_p),
    )


def _none(block: Block) -> np.ndarray:
    return np.full(len(block.tokens), -np.inf, np.float32)
