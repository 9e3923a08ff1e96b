"""The average of what is trained over the steps, which is kept in place of the last parameters.

  θ̄ₜ = Σᵢ d^(t−i) θᵢ / Σᵢ d^(t−i)      over the steps i = 1 … t,

the exponential moving average without its start; d = 1 is the mean of all steps. Batches are drawn from θₜ, and the
gradients are its own. Where these are noisy the parameters wander about a place at the size of the learning rate, and
their average is nearer to it.

Reference: Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dera_jax.training import losses
from dera_jax.training.loop import Method
from dera_jax.training.optimization import TrainState

AVERAGE = "average"
"""Name of the average beside what else a method renews."""


def averaged(method: Method, decay: float) -> Method:
    """Returns `method` with the average of its parameters, which evaluations and certificates are then of.

    Args:
      decay: d, in [0, 1]; 0 returns `method` as it is.
    """
    if not decay:
        return method

    def renew(params: PyTree, kept: dict, batch: object, step: Int[Array, ""]) -> dict:
        others = method.renew(params, kept, batch, step) if method.renew else {}
        return kept | others | {AVERAGE: losses.soft_update(kept[AVERAGE], params, weight(decay, step))}

    def of_average(told_by: Callable | None) -> Callable | None:
        return told_by and (lambda state, *more: told_by(state._replace(params=chosen(state)), *more))

    return replace(
        method,
        kept=method.kept | {AVERAGE: method.trained},
        renew=renew,
        evaluate=of_average(method.evaluate),
        certify=of_average(method.certify),
    )


def weight(decay: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the weight of the parameters after a step in the average:  (1 − d) / (1 − dᵗ),  or 1/t where d = 1.

    Args:
      decay: d, in (0, 1].
      step: t, at least 1.
    """
    steps = jnp.float32(step)
    return 1 / steps if decay == 1 else (1 - decay) / -jnp.expm1(steps * math.log(decay))


def chosen(state: TrainState) -> PyTree:
    """Returns the parameters that make the model: their average, where there is one."""
    return state.kept.get(AVERAGE, state.params)
