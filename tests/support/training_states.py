"""A state as training has it, saved in checkpoints and restored."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dera_jax.commands.options import cli
from dera_jax.training.checkpoints import Checkpoints


class State(NamedTuple):
    params: dict
    opt_state: Any
    key: jax.Array
    step: Any


def make_state(seed: int = 0) -> State:
    """Returns a state as training has it: masked Adam, schedules, empty states, keys, every type."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "w": jax.random.normal(keys[0], (33, 8)),
        "layers": [{"b": jax.random.normal(keys[1], (5,), jnp.bfloat16)}, {"none": None}],
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        "ids": jax.random.randint(keys[2], (3, 2), -(2**31), 2**31 - 1),
        "empty": jnp.zeros((0, 3)),
        "flags": jnp.array([True, False]),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))
    opt_state = optimizer.init({"w": params["w"]})
    return State(params, opt_state, jax.random.key_data(keys[3]), jnp.int32(7 + seed))


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def saved(folder, *steps, keep=2):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"offset": step})


def restored(folder, like=None):
    with Checkpoints(folder, tell=cli.tell) as checkpoints:
        return checkpoints.restore(make_state() if like is None else like)
