"""Value heads with parameters that say something, without a training."""

import jax
import numpy as np

from dera_jax.models.trees import flatten
from dera_jax.models.value import HEAD
from dera_jax.policies.policy import Policy, with_params
from dera_jax.policies.value_heads import fresh_value_head, save_value_head


def random_value_head(reference: Policy, seed: int = 0, scale: float = 0.1) -> Policy:
    """Returns a value head none of whose parameters is 0."""
    value = fresh_value_head(reference, seed)
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    head = jax.tree.map(lambda a: scale * jax.random.normal(next(keys), a.shape, a.dtype), value.params[HEAD])
    return with_params(value, value.params | {HEAD: head})


def save_random(reference: Policy, name: str, folder, seed: int = 0) -> Policy:
    """Writes a random head as `train.value` does, and returns it."""
    value = random_value_head(reference, seed)
    head = {path: np.asarray(array) for path, array in flatten(value.params[HEAD]).items()}
    save_value_head(head, folder, name, reference.fingerprint, {"method": "value"})
    return value
