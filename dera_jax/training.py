"""The training loop: an optimizer, a jitted update, metrics on disk, a stop at NaN."""

import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from dera_jax.configs import TrainConfig

Loss = Callable[[PyTree, Any], tuple[Float[Array, ""], dict]]
"""(params, batch) -> (loss, metrics)."""


class TrainState(NamedTuple):
    """What an update changes."""

    params: PyTree
    opt_state: PyTree


def make_optimizer(config: TrainConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns AdamW with clipped gradients, and its learning rate at each step."""
    warmup = math.ceil(config.warmup_ratio * config.max_steps)
    rest = max(config.max_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
    }[config.lr_scheduler_type]
    # Step 0 already learns: the warm-up rises from 1/(warmup + 1), not from 0.
    before = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, warmup)
    schedule = optax.join_schedules([before, after], [warmup])
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw), schedule


def make_update(loss: Loss, optimizer: optax.GradientTransformation):
    """Returns the jitted update (state, batch) -> (state, metrics); the old state's memory is reused."""

    @partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, batch: Any) -> tuple[TrainState, dict]:
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(gradients)
        return TrainState(params, opt_state), {"loss": value, "grad_norm": norm, **metrics}

    return update


def fit(
    params: PyTree,
    config: TrainConfig,
    loss: Loss,
    batches: Callable[[PyTree, int], tuple[Any, dict]],
    metrics_file: Path,
) -> Iterator[tuple[int, PyTree]]:
    """Trains, yielding (steps done, parameters) after every step.

    Args:
      params: to start from; they are copied.
      loss: of a batch.
      batches: (parameters, step) to the step's batch and what to log with it. A batch may be drawn
        from the policy as it is at that step.
      metrics_file: gets one JSON line a step.

    Raises:
      ValueError: the loss or the gradient is not finite; names the step.
    """
    optimizer, schedule = make_optimizer(config)
    update = make_update(loss, optimizer)
    params = jax.tree.map(lambda a: a.copy(), params)
    state = TrainState(params, optimizer.init(params))
    metrics_file.parent.mkdir(parents=True, exist_ok=True)
    with metrics_file.open("w") as log, tqdm(total=config.max_steps, unit="step", dynamic_ncols=True) as bar:
        for step in range(config.max_steps):
            start = time.perf_counter()
            batch, logged = batches(state.params, step)
            state, metrics = update(state, batch)
            metrics = {name: float(value) for name, value in metrics.items()}
            _check_finite(metrics, step)
            line = {"step": step, **metrics, "learning_rate": float(schedule(step)), **logged}
            line["seconds"] = round(time.perf_counter() - start, 4)
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.set_postfix(
                {k: f"{v:.3g}" for k, v in line.items() if k in ("loss", "reward", "kl", "length")}
            )
            bar.update()
            yield step + 1, state.params


def _check_finite(metrics: dict[str, float], step: int) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            raise ValueError(
                f"training stopped at step {step}: {name} is {metrics[name]}; try a lower learning rate"
            )
