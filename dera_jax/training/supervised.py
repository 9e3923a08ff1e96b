"""Training on given data: SFT, preferences and reward models, which differ in batches and loss only."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dera_jax.data.order import shuffled
from dera_jax.training.config import TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.optimization import Loss, TrainState, make_evaluation

Sampler = Callable[[PyTree], list[dict]]
"""Trained parameters to texts that the policy writes with them."""


class Source(NamedTuple):
    """What is trained or evaluated on."""

    count: int
    """Of the items."""
    make: Callable[[Sequence[int], int], Any]
    """Makes a batch of some rows of the items at some positions. Rows beyond them weigh nothing."""
    lengths: Sequence[int] | None = None
    """Of the items, in tokens: batches are then of similar ones."""
    alike: bool = True
    """Whether they may be: not where a batch stands for all of the data."""


def supervised(
    trained: PyTree,
    source: Source,
    loss: Loss,
    config: TrainConfig,
    *,
    held_out: Source | None = None,
    sample: Sampler | None = None,
    constants: dict | None = None,
    batch_mean: Loss | None = None,
    **more,
) -> Method:
    """Returns the method that goes through `source` in a new order every epoch.

    Args:
      trained: parameters to start from.
      held_out: what is evaluated on; its figures are logged as `eval_…`.
      batch_mean: see `Method`; in an evaluation it is the mean over all that is held out.
      **more: further fields of `Method`.
    """
    count, make, lengths, alike = source
    constants = constants or {}
    order = shuffled(count, config.batch_size, config.seed, lengths if alike else None)

    def batches(_: TrainState | None, step: int) -> tuple[Any, dict]:
        batch = make(order(step).tolist(), config.batch_size)
        tokens = int(np.sum(batch.mask))
        return batch, {"epoch": round((step + 1) * config.batch_size / count, 4), "tokens": tokens}

    evaluate_batch = make_evaluation(loss)
    measure_batch = batch_mean and make_evaluation(batch_mean)

    def evaluate(state: TrainState, constants: dict) -> tuple[dict, list[dict]]:
        figures = {}
        if held_out and measure_batch:
            found = mean_figures(lambda batch: measure_batch(state, constants, batch), held_out, config)
            constants = constants | {"batch_mean": np.float32(found["loss"])}
        if held_out:
            means = mean_figures(lambda batch: evaluate_batch(state, constants, batch), held_out, config)
            figures = {f"eval_{name}": value for name, value in means.items()}
        return figures, sample(state.params) if sample and jax.process_count() == 1 else []

    return Method(trained, loss, batches, constants, evaluate=evaluate, batch_mean=batch_mean, **more)


def mean_figures(evaluate: Callable, source: Source, config: TrainConfig) -> dict[str, float]:
    """Returns the weighted means over all items, each read once."""
    count, make, lengths, _ = source
    order = np.argsort(lengths if lengths is not None else np.zeros(count), kind="stable").tolist()
    rows = config.batch_size // config.gradient_accumulation_steps
    total: dict[str, float] = {}
    weight = 0.0
    for start in range(0, count, rows):
        sums, part = jax.device_get(evaluate(make(order[start : start + rows], rows)))
        weight += float(part)
        total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
    return {name: value / weight for name, value in total.items()}


def hold_out(items: Sequence, share: float) -> tuple[list, list]:
    """Returns items to train on and to evaluate on, all of a prompt on one side, by a hash of the prompt.

    Raises:
      ValueError: one side would be empty.
    """

    def bucket(item) -> int:
        # Whole texts have no prompt but the first token.
        whole = item.prompt if len(item.prompt) > 1 else (*item.prompt, *item.completion)
        told = item.asked or whole
        return zlib.crc32(np.array(told, np.int64).tobytes()) % 10_000

    sides = [], []
    for item in items:
        sides[bucket(item) < share * 10_000].append(item)
    if not all(sides):
        raise ValueError(f"holding out {share:g} of {len(items)} examples leaves one side empty")
    return sides
