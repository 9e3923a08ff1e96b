"""What the tests of sweeps share: policies, settings, and how rows are held against others."""

import dataclasses

import jax
import jax.numpy as jnp

from dera_jax.policies.policy import with_params

TEXTS = ["Once upon a time", "Lily had a dog", "Tom saw"]
LAMBDAS = [-0.5, 0.0, 0.5, 1.0, 1.5]
SETTINGS = {"max_new_tokens": 24, "rows": 4}
"""The same everywhere, so that little is compiled."""


def another_aligned(policies):
    """Returns another aligned policy."""
    keys = iter(jax.random.split(jax.random.key(11), 100))
    params = jax.tree.map(
        lambda a: a * (1 + 0.1 * jax.random.normal(next(keys), a.shape)), policies[0].params
    )
    return dataclasses.replace(with_params(policies[0], params), fingerprint="third")


def by_key(rows):
    keyed = {(row["prompt_id"], row["sample"], str(row["lambda"])): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def assert_contains(rows, others):
    """Every row of `others` is in `rows`, equal in every bit of every field but added rewards."""
    found = by_key(rows)
    for key, row in by_key(others).items():
        there = found[key]
        assert {**there, "rewards": {name: there["rewards"][name] for name in row["rewards"]}} == row


def mixture_by_hand(logits, weights, state):
    return jnp.einsum("mrv,rm->rv", logits, weights, precision="highest"), state
