"""Training of reward models on preferences (Bradley–Terry)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.data.buckets import pad_left, padded_length
from dera_jax.data.examples import Pair
from dera_jax.policies.reward_models import OWN, RewardPolicy
from dera_jax.rewards.model import reward_texts
from dera_jax.training import losses, parameters
from dera_jax.training.config import TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.optimization import Terms
from dera_jax.training.supervised import Source, supervised


class TextBatch(NamedTuple):
    """Two whole texts in every row, chosen and rejected, padded on the left."""

    tokens: Int[Array | np.ndarray, "rows 2 length"]
    mask: Bool[Array | np.ndarray, "rows 2 length"]
    margin: Float[Array | np.ndarray, " rows"]
    weights: Float[Array | np.ndarray, " rows"]


def reward_method(
    reward: RewardPolicy,
    pairs: Sequence[Pair],
    config: TrainConfig,
    *,
    center: float = 0.0,
    held_out: Sequence[Pair] = (),
) -> Method:
    """Returns the training of a reward model: L = −log σ(r_w − r_l − m) + c (r_w + r_l)².

    Args:
      center: c, draws rewards towards a mean of 0.
    """
    start, frozen = parameters.split(reward.params, OWN)

    def loss(params: PyTree, given: dict, batch: TextBatch) -> Terms:
        model = models.bind(reward.config, parameters.whole(reward.config, params, given["frozen"]))
        tokens, mask = (jnp.asarray(a).reshape(-1, a.shape[-1]) for a in (batch.tokens, batch.mask))
        chosen, rejected = model(tokens, mask).reshape(-1, 2).T
        values = losses.bradley_terry_loss(chosen, rejected, batch.margin, center)
        metrics = {
            "accuracy": chosen > rejected,
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
        return Terms(values, batch.weights, metrics)

    return supervised(
        start,
        _source(pairs),
        loss,
        config,
        held_out=_source(held_out) if held_out else None,
        constants={"frozen": frozen},
    )


def pair_margins(reward: RewardPolicy, pairs: Sequence[Pair]) -> Float[np.ndarray, " pairs"]:
    """Returns r_w − r_l of each pair."""
    chosen, rejected = (
        reward_texts(reward, [pair.prompt + side for pair, side in zip(pairs, sides, strict=True)])
        for sides in zip(*((pair.chosen, pair.rejected) for pair in pairs), strict=True)
    )
    return chosen - rejected


def _source(pairs: Sequence[Pair]) -> Source:
    def make(positions: Sequence[int], rows: int) -> TextBatch:
        chosen = [pairs[i] for i in positions]
        texts = [pair.prompt + completion for pair in chosen for completion in (pair.chosen, pair.rejected)]
        texts += [()] * (2 * rows - len(texts))
        bucket = padded_length(max(map(len, texts)))
        tokens, mask = (
            np.stack(both) for both in zip(*(pad_left(text, bucket) for text in texts), strict=True)
        )
        empty = rows - len(chosen)
        return TextBatch(
            tokens.reshape(rows, 2, -1),
            mask.reshape(rows, 2, -1),
            margin=np.array([pair.margin for pair in chosen] + [0.0] * empty, np.float32),
            weights=np.array([1.0] * len(chosen) + [0.0] * empty, np.float32),
        )

    return Source(len(pairs), make, [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs])
