"""The training loop: batches in, steps, metrics and checkpoints out; a stop that loses nothing.

A way of training is a `Method`: what is trained, the loss, where batches come from. Batches and draws
depend on the seed and the step alone, so a run that goes on from a checkpoint ends as if it had never
stopped, to the bit.
"""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from dera_jax.common.json_files import check_type
from dera_jax.common.notes import Tell, unheard
from dera_jax.common.shown import shown
from dera_jax.devices import placement, processes
from dera_jax.devices.lost import telling_of_loss
from dera_jax.models.trees import flatten
from dera_jax.training.checkpoints import Checkpoints
from dera_jax.training.config import RunConfig, TrainConfig
from dera_jax.training.log import RunLog
from dera_jax.training.optimization import Loss, Renew, TrainState, init_state, make_optimizer, make_update


@dataclass(frozen=True)
class Method:
    """A way of training."""

    trained: PyTree
    """What is trained, as it starts; float32."""
    loss: Loss
    batches: Callable[[TrainState, int], tuple[Any, dict]]
    """(state, step) to the step's batch and what to log with it. A batch may be drawn from the policy as
    it is at that step."""
    constants: dict = field(default_factory=dict)
    """Arrays that the loss is given and nothing changes, by name: what is frozen, β."""
    kept: dict = field(default_factory=dict)
    """The same, but renewed after every step."""
    renew: Renew | None = None
    batch_mean: Loss | None = None
    """Values whose mean over the whole batch, however it is split, the loss is given as `batch_mean`. Its
    gradient is not taken."""
    updates: int = 1
    """Of the parameters in a step; if more, the batch has one entry in front for each."""
    rates: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rate, by the beginnings of parameters' names."""
    evaluate: Callable[[TrainState, dict], tuple[dict, list[dict]]] | None = None
    """(state, constants) to figures to log, and samples to keep."""
    certify: Callable[[TrainState], dict] | None = None
    """The trained state to how far it is from the optimum, for the manifest, see `certificates`."""
    drawn: Callable[[], list[dict]] | None = None
    """Samples of what was drawn for the last batch, to keep some where there is a checkpoint or evaluation."""


class Preempted(Exception):
    """The run was asked to end (SIGTERM); its state is saved."""


def fit(
    method: Method,
    config: TrainConfig,
    run: RunConfig,
    out: Path,
    mesh: Mesh | None = None,
    tell: Tell | None = None,
) -> Iterator[tuple[int, TrainState, dict]]:
    """Trains, yielding (steps done, state, metrics of an evaluation if there was one) after every step.

    Goes on from the newest checkpoint in OUT/checkpoints, if there is one, and yields it first: the run
    before may have ended before anything was made of it. The state's memory is used again by the next
    step: what is to be kept of it is copied.

    Args:
      mesh: splits parameters, the optimizer's state and batches over its devices; None is one device.
      tell: hears how it goes, beside a bar that shows the progress. None: no bar, and warnings of damage.

    Raises:
      ValueError: loss or gradients are not finite; names the step and the parameter.
      Preempted: after SIGTERM, the state saved.
      KeyboardInterrupt: after Ctrl-C, the state saved.
    """
    optimizer, schedule = make_optimizer(config, method.updates, method.rates)
    if mesh:
        method = on_mesh(method, mesh)
    state = init_state(method.trained, optimizer, method.kept, mesh)
    parts = config.gradient_accumulation_steps
    update = make_update(
        method.loss,
        optimizer,
        parts,
        method.updates,
        method.renew,
        lies=state if mesh else None,
        batch_mean=method.batch_mean,
    )
    names = list(flatten(state.params))
    # Devices of a CPU share its threads: two programs that both wait for all devices may wait for ever.
    one_at_a_time = mesh is not None and mesh.devices.flat[0].platform == "cpu"
    with (
        _lost_others(out),
        Checkpoints(out / "checkpoints", run.save_total_limit, tell or warnings.warn) as checkpoints,
        _asked_to_stop(tell or unheard) as asked,
    ):
        found = checkpoints.restore(state)
        first, state, sizes = found or (0, state, None)
        if found and tell and processes.leads():
            tell(f"{shown(out, 200)}: going on from step {first}")
        check_type(sizes or {}, dict[str, int])
        with RunLog(out, config.max_steps, run.report_to, sizes, processes.leads(), tell) as log:
            if found:
                yield first, state, _evaluated_again(method, state, first, config, run)
            waiting, seen = None, set()
            for step in range(first, config.max_steps):
                started = time.perf_counter()
                batch, logged = method.batches(state, step)
                if (shapes := tuple(map(np.shape, jax.tree.leaves(batch)))) not in seen:
                    seen.add(shapes)
                    log.tell_compiling()
                state, figures = update(state, method.constants, batch)
                if one_at_a_time:
                    jax.block_until_ready(state)
                logged = {"learning_rate": float(schedule(step * method.updates)), **logged}
                # The device works on this step while the last one is written.
                if waiting:
                    log.write(*waiting[:3], _checked(waiting[0], waiting[3], names))
                waiting = step, logged, time.perf_counter() - started, figures
                evaluated = {}
                evaluate = method.evaluate and _due(step, run.eval_steps, config.max_steps)
                if method.drawn and any(
                    _due(step, every, config.max_steps) for every in (run.eval_steps, run.save_steps)
                ):
                    log.sample(step, method.drawn())
                how = asked.how(step)
                save = how or _due(step, run.save_steps, config.max_steps)
                if evaluate or save:
                    metrics, waiting = _checked(step, figures, names), None
                    seconds = time.perf_counter() - started
                    if evaluate:
                        evaluated, samples = method.evaluate(state, method.constants)
                        log.sample(step, samples)
                    log.write(step, logged | evaluated, seconds, metrics)
                if save:
                    checkpoints.save(step + 1, state, log.sizes())
                yield step + 1, state, evaluated
                if how:
                    checkpoints.wait()
                    raise how(f"{out}: saved after step {step + 1}; the same command goes on from there")


def on_mesh(method: Method, mesh: Mesh) -> Method:
    """Returns `method` with its arrays split over a mesh, and batches too."""
    rows_axis = int(method.updates > 1)

    def batches(state: TrainState, step: int) -> tuple[Any, dict]:
        batch, logged = method.batches(state, step)
        return placement.shard_rows(batch, mesh, rows_axis), logged

    arrays = {
        name: placement.shard_flat(getattr(method, name), mesh) for name in ("trained", "constants", "kept")
    }
    return replace(method, batches=batches, **arrays)


def _lost_others(out: Path) -> AbstractContextManager:
    if not processes.several():
        return nullcontext()
    return telling_of_loss(f"{out} keeps the last checkpoint, the same command goes on from there")


def _evaluated_again(
    method: Method, state: TrainState, steps: int, config: TrainConfig, run: RunConfig
) -> dict:
    """Returns the figures of the evaluation after `steps` steps; nothing if there was none."""
    if not method.evaluate or not _due(steps - 1, run.eval_steps, config.max_steps):
        return {}
    figures, _ = method.evaluate(state, method.constants)
    return figures


def _due(step: int, every: int, last: int) -> bool:
    return step + 1 == last or (every > 0 and (step + 1) % every == 0)


def _checked(step: int, figures: dict, names: list[str]) -> dict[str, float]:
    """Returns the metrics of a step as numbers; raises ValueError where they are not finite."""
    figures = jax.device_get(figures)
    norms = figures.pop("norms")
    metrics = {name: float(value) for name, value in figures.items()}
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            broken = [n for n, norm in zip(names, norms, strict=True) if not np.isfinite(norm)]
            where = (
                f", first in the gradient of {broken[0]} ({len(broken)} of {len(names)})" if broken else ""
            )
            raise ValueError(
                f"training stopped at step {step}: {name} is {metrics[name]}{where}; the last checkpoint is "
                "from before; try a lower --learning-rate"
            )
    return metrics


@contextmanager
def _asked_to_stop(tell: Tell):
    """Gives what to raise after a step: Preempted after SIGTERM, KeyboardInterrupt after Ctrl-C.

    Of several processes all stop after the same step, whichever was asked. A second Ctrl-C ends at once.
    Signals reach the main thread only; elsewhere they are not caught.
    """
    asked = SimpleNamespace(by=None)
    asked.how = lambda step: (asked.by or Preempted) if processes.stop_after(step) else None
    if not processes.several():
        asked.how = lambda step: asked.by
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def terminate(*_):
        asked.by = Preempted

    def interrupt(*_):
        if asked.by is KeyboardInterrupt:
            raise KeyboardInterrupt
        asked.by = KeyboardInterrupt
        if processes.several():
            os.kill(os.getpid(), signal.SIGTERM)
        tell("\nfinishing this step; press Ctrl-C again to stop now")

    # Of several processes each hears SIGTERM by the service that they share, which has its own handler.
    handlers = {signal.SIGINT: interrupt} | ({} if processes.several() else {signal.SIGTERM: terminate})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
