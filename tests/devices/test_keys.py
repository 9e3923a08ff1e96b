"""Seeds and their random keys."""

import jax
import numpy as np
from flax import nnx

from dera_jax.models.keys import seed_key

FAR = (0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**40 + 5, 2**62, 2**63 - 1)


def words(seed):
    return tuple(np.asarray(jax.random.key_data(seed_key(seed))).tolist())


def test_different_seeds_have_different_keys():
    assert len(set(map(words, FAR))) == len(FAR)


def test_a_seed_of_32_bits_has_jaxs_own_key():
    for seed in FAR[:4]:
        assert words(seed) == tuple(np.asarray(jax.random.key_data(jax.random.key(seed))).tolist())
    drawn = [nnx.Rngs(source).params() for source in (7, seed_key(7))]
    assert np.array_equal(*map(jax.random.key_data, drawn))
