"""What tests of sweeps decode."""

import pytest

from dera_jax import sweep
from tests.support.swept import LAMBDAS, SETTINGS, TEXTS, another_aligned


@pytest.fixture(scope="module")
def policies(pair):
    return pair


@pytest.fixture(scope="module")
def rows(policies):
    return list(sweep(policies, TEXTS, LAMBDAS, num_samples=2, **SETTINGS))


@pytest.fixture(scope="module")
def third(policies):
    return another_aligned(policies)
