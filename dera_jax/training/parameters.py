"""Which of a policy's parameters are trained, and how they make a whole model again.

Trained parameters are float32 masters whatever the model computes in: small steps would be lost in bfloat16.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dera_jax.models.linear import WeightsConfig
from dera_jax.models.members import ADAPTER
from dera_jax.models.trees import flatten, unflatten


def split(params: PyTree, heads: tuple[str, ...] = ()) -> tuple[PyTree, PyTree]:
    """Returns what is trained, in float32, and what is not: with adapters those alone, else everything.

    Args:
      heads: beginnings of the paths of what is trained beside adapters.
    """
    flat = flatten(params)
    adapters = {path for path in flat if path.endswith(ADAPTER)}
    chosen = adapters | {path for path in flat if path.startswith(heads)} if adapters else set(flat)
    trained = {path: jnp.asarray(flat[path], jnp.float32) for path in flat if path in chosen}
    return trained, {path: flat[path] for path in flat if path not in chosen}


def split_head(params: PyTree, head: str) -> tuple[PyTree, PyTree]:
    """Returns what is trained of a model whose head alone is, in float32, and what is not.

    Args:
      head: name of the head; adapters, if there are any, stay as they are.
    """
    flat = flatten(params)
    trained = {path: jnp.asarray(a, jnp.float32) for path, a in flat.items() if path.startswith(f"{head}.")}
    return trained, {path: a for path, a in flat.items() if path not in trained}


def whole(config: WeightsConfig, trained: PyTree, frozen: PyTree) -> PyTree:
    """Returns the parameters that a model computes with: trained ones rounded to `config.dtype`."""
    return unflatten(frozen | jax.tree.map(lambda a: a.astype(config.dtype), trained))


def named(prefix: str, params: PyTree) -> PyTree:
    """Returns flat parameters with `prefix` before their names."""
    return {prefix + name: value for name, value in params.items()}


def part(prefix: str, params: PyTree) -> PyTree:
    """Returns those flat parameters whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
