"""Fixtures shared by all tests; shapes in signatures are checked while tests run."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook looks it up by name)

# Torch with several threads on models this small waits for them most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before the first import of dera_jax: every annotated function then checks its arguments' shapes.
install_import_hook("dera_jax", "tests.typecheck.check")

import jax  # noqa: E402
import pytest  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of a real pretrained model of 260 032 parameters."""
    return SHARED / "models" / "stories260K"


@pytest.fixture(scope="session")
def pair(stories):
    """A reference and a policy that differs from it: the same weights, disturbed."""
    from dera_jax import load_policy
    from dera_jax.policies import with_params

    reference = load_policy(str(stories))
    keys = iter(jax.random.split(jax.random.key(7), 100))

    def disturb(array):
        return array * (1 + 0.1 * jax.random.normal(next(keys), array.shape, array.dtype))

    return reference, with_params(reference, jax.tree.map(disturb, reference.params))
