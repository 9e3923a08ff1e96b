"""The random key of a seed."""

import jax
import numpy as np
from jaxtyping import Array, Key


def seed_key(seed: int) -> Key[Array, ""]:
    """Returns the key of a seed from 0 to 2⁶³ − 1; different seeds have different keys.

    `jax.random.key` alone takes the lower 32 bits of a seed and drops the rest without a word.
    """
    low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
