"""Trainings of tiny policies: their data and settings, and what a run leaves."""

import numpy as np

from dera_jax.data.examples import Example, Pair
from dera_jax.training.config import RunConfig, TrainConfig
from dera_jax.training.log import read_metrics
from dera_jax.training.loop import fit

EXAMPLES = [
    Example((1, 2), tuple(np.random.default_rng(n).integers(0, 3, size=n + 1).tolist()) + (3,))
    for n in range(12)
]
PAIRS = [Pair((1, 2, n % 3), (2,) * (1 + n % 3) + (3,), (0, n % 2, 3)) for n in range(12)]
CONFIG = TrainConfig(learning_rate=0.01, max_steps=4, batch_size=4, warmup_ratio=0.0)
RUN = RunConfig()


def train(method, tmp_path, config=CONFIG, run=RUN, **more):
    """Returns the trained parameters and the metrics of a run."""
    for _, state, _ in fit(method, config, run, tmp_path, **more):
        params = state.params
    return params, read_metrics(tmp_path)


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **tolerance)
