"""One optimizer step: gradients accumulated over the parts of a batch, clipped, applied."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax.devices.placement import like_params
from dera_jax.models.trees import flatten
from dera_jax.training.config import TrainConfig


class Terms(NamedTuple):
    """What a loss is the mean of."""

    values: Float[Array, "*items"]
    weights: Float[Array, "*items"] | Bool[Array, "*items"]
    """The loss is Σ weight · value / Σ weight over the whole batch, however it is split."""
    metrics: dict[str, Array] = {}  # noqa: RUF012 (never changed)
    """Further values by name, averaged with the same weights."""


Loss = Callable[[PyTree, dict, Any], Terms]
"""(trained parameters, given, batch) -> terms. `given` is what else is known: constants and `kept`."""


class TrainState(NamedTuple):
    """What a step changes."""

    params: PyTree
    """The trained ones, in float32."""
    opt_state: PyTree
    kept: dict
    """What a method renews beside: a reference that follows, an adaptive β."""
    step: Int[Array, ""]


Renew = Callable[[PyTree, dict, Any, Int[Array, ""]], dict]
"""(parameters, kept, the step's batch, steps done) -> kept."""


def make_optimizer(
    config: TrainConfig, updates: int = 1, rates: Mapping[str, float] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns AdamW with clipped gradients, and its learning rate at each update.

    Args:
      updates: of the parameters in one step.
      rates: factors of the learning rate, by the beginnings of parameters' names.
    """
    total = config.max_steps * updates
    warmup = warmup_updates(config, updates)
    rest = max(total - warmup, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
    }[config.lr_scheduler_type]
    # Step 0 already learns: the warm-up rises from 1/(warmup + 1), not from 0.
    before = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, warmup)
    schedule = optax.join_schedules([before, after], [warmup])
    adamw = optax.adamw(
        schedule, config.adam_beta1, config.adam_beta2, config.adam_epsilon,
        weight_decay=config.weight_decay, mask=_decayed,
    )  # fmt: skip
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, adamw, *([_scaled(rates)] if rates else [])), schedule


def _scaled(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Returns what multiplies changes of flat parameters by the factor of their name's beginning, if it has one."""

    def factor(name: str) -> float:
        return next((rate for start, rate in rates.items() if name.startswith(start)), 1.0)

    return optax.stateless(lambda changes, _: {name: each * factor(name) for name, each in changes.items()})


def warmup_updates(config: TrainConfig, updates: int = 1) -> int:
    """Returns in how many updates the learning rate rises: of `warmup_steps`, or else of `warmup_ratio`.

    Shares are rounded up, as transformers does.
    """
    if config.warmup_steps >= 1:
        return int(config.warmup_steps) * updates
    return math.ceil((config.warmup_steps or config.warmup_ratio) * config.max_steps * updates)


def decays(name: str) -> bool:
    """Whether weight decay draws a parameter to 0: matrices, not biases and scales of normalizations.

    As transformers' Trainer has it, and TRL's trainers with it.

    >>> decays("blocks.0.attention.query.kernel"), decays("blocks.0.attention_norm.scale")
    (True, False)
    """
    *modules, last = name.split(".")
    return last != "bias" and "bias" not in modules and not any(m.endswith("norm") for m in modules)


def _decayed(params: PyTree) -> PyTree:
    """Returns which parameters decay."""

    def one(path, _):
        return decays(".".join(str(key.key) for key in path))

    return jax.tree_util.tree_map_with_path(one, params)


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, kept: dict, mesh: Mesh | None = None
) -> TrainState:
    """Returns the state before the first step; its arrays are copies, since a step reuses their memory.

    Args:
      mesh: that `params` and `kept` lie on; the optimizer's moments lie as their parameters do.
    """
    params, kept = (jax.tree.map(lambda a: a.copy(), tree) for tree in (params, kept))
    if mesh is None:
        return TrainState(params, optimizer.init(params), kept, jnp.int32(0))
    init = jax.jit(optimizer.init, out_shardings=like_params(optimizer, params, mesh))
    step = jax.device_put(np.int32(0), NamedSharding(mesh, PartitionSpec()))
    return TrainState(params, init(params), kept, step)


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    accumulation: int = 1,
    updates: int = 1,
    renew: Renew | None = None,
    lies: TrainState | None = None,
    batch_mean: Loss | None = None,
):
    """Returns the jitted step (state, constants, batch) -> (state, metrics); the old state's memory is reused.

    Args:
      accumulation: parts that a batch's rows are split into, one after the other.
      updates: if more than 1, the batch has as many entries in front, one for each update.
      renew: gives `kept` after the step.
      lies: a state on a mesh; every other one lies as it does.
      batch_mean: what the loss is given the mean of, see `Method`.

    Metrics are means over the step's updates: `loss`, `grad_norm` and what the loss gives; and `norms`,
    the gradient norm of each parameter in the order of `flatten`.
    """

    def once(state: TrainState, constants: dict, batch: Any) -> tuple[TrainState, dict]:
        gradients, figures = _mean_gradients(loss, state, constants, batch, accumulation, batch_mean)
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        norms = jnp.stack([jnp.linalg.norm(g.ravel()) for g in flatten(gradients).values()])
        figures |= {"grad_norm": jnp.linalg.norm(norms), "norms": norms}
        return state._replace(params=params, opt_state=opt_state), figures

    shardings = None if lies is None else (jax.tree.map(lambda a: a.sharding, lies), None)

    @partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def update(state: TrainState, constants: dict, batch: Any) -> tuple[TrainState, dict]:
        if updates == 1:
            state, figures = once(state, constants, batch)
        else:
            state, each = jax.lax.scan(lambda s, part: once(s, constants, part), state, batch)
            figures = jax.tree.map(lambda a: a.mean(axis=0), each)
        step = state.step + 1
        kept = renew(state.params, state.kept, batch, step) if renew else state.kept
        return state._replace(kept=kept, step=step), figures

    return update


def make_evaluation(loss: Loss):
    """Returns the jitted (state, constants, batch) -> (sums of values by name, sum of weights)."""

    @jax.jit
    def evaluate(state: TrainState, constants: dict, batch: Any) -> tuple[dict, Array]:
        return _sums(loss(state.params, {**constants, **state.kept}, batch))

    return evaluate


def _sums(terms: Terms) -> tuple[dict[str, Array], Array]:
    weights = terms.weights.astype(jnp.float32)
    values = {"loss": terms.values} | terms.metrics
    # What counts nothing may be anything, NaN too.
    sums = {name: jnp.sum(jnp.where(weights > 0, value, 0) * weights) for name, value in values.items()}
    return sums, jnp.sum(weights)


def _mean_gradients(
    loss: Loss, state: TrainState, constants: dict, batch: Any, accumulation: int, batch_mean: Loss | None
):
    """Returns the gradients of Σ weight · value / Σ weight over all parts, and the means."""
    given = {**constants, **state.kept}
    if batch_mean:
        sums, weight = _over_parts(
            lambda part: _sums(batch_mean(state.params, given, part)), batch, accumulation
        )
        given["batch_mean"] = sums["loss"] / jnp.maximum(weight, 1e-9)

    def total(params, part):
        sums, weight = _sums(loss(params, given, part))
        return sums["loss"], (sums, weight)

    gradient = jax.grad(total, has_aux=True)
    gradients, (sums, weight) = _over_parts(lambda part: gradient(state.params, part), batch, accumulation)
    weight = jnp.maximum(weight, 1e-9)
    return jax.tree.map(lambda g: g / weight, gradients), {n: value / weight for n, value in sums.items()}


def _over_parts(function: Callable[[Any], PyTree], batch: Any, count: int) -> PyTree:
    """Returns the sum of what `function` gives of each of `count` parts of a batch, one after the other."""
    if count == 1:
        return function(batch)
    # Neighbouring rows go to different parts: rows split over devices stay where they are.
    parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), batch)
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(function, jax.tree.map(lambda a: a[0], parts)),
    )
    return jax.lax.scan(lambda sum_, part: (jax.tree.map(jnp.add, sum_, function(part)), None), zeros, parts)[
        0
    ]
