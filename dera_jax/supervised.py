"""Training on given data: SFT, preferences and reward models, which differ in batches and loss only."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dera_jax.batches import shuffled
from dera_jax.configs import TrainConfig
from dera_jax.optimization import Loss, TrainState, make_evaluation
from dera_jax.training import Method

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


def supervised(
    trained: PyTree,
    source: Source,
    loss: Loss,
    config: TrainConfig,
    *,
    held_out: Source | None = None,
    sample: Sampler | None = None,
    constants: dict | None = None,
    **more,
) -> Method:
    """Returns the method that goes through `source` in a new order every epoch.

    Args:
      trained: parameters to start from.
      held_out: what is evaluated on; its figures are logged as `eval_…`.
      **more: further fields of `Method`.
    """
    count, make, lengths = source
    constants = constants or {}
    order = shuffled(count, config.batch_size, config.seed, lengths)

    def batches(_: TrainState | None, step: int) -> tuple[Any, dict]:
        batch = make(order(step).tolist(), config.batch_size)
        tokens = int(np.sum(batch.mask))
        return batch, {"epoch": round((step + 1) * config.batch_size / count, 4), "tokens": tokens}

    evaluate_batch = make_evaluation(loss)

    def evaluate(state: TrainState, constants: dict) -> tuple[dict, list[dict]]:
        figures = {}
        if held_out:
            means = mean_figures(lambda batch: evaluate_batch(state, constants, batch), held_out, config)
            figures = {f"eval_{name}": value for name, value in means.items()}
        return figures, sample(state.params) if sample and jax.process_count() == 1 else []

    return Method(trained, loss, batches, constants, evaluate=evaluate, **more)


def mean_figures(evaluate: Callable, source: Source, config: TrainConfig) -> dict[str, float]:
    """Returns the weighted means over all items, each read once."""
    count, make, lengths = source
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
        told = item.prompt if len(item.prompt) > 1 else (*item.prompt, *item.completion)
        return zlib.crc32(np.array(told, np.int64).tobytes()) % 10_000

    sides = [], []
    for item in items:
        sides[bucket(item) < share * 10_000].append(item)
    if not all(sides):
        raise ValueError(f"holding out {share:g} of {len(items)} examples leaves one side empty")
    return sides
