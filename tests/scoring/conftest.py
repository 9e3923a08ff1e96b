"""Fixtures of the scoring's tests."""

import pytest


@pytest.fixture(scope="module")
def theirs():
    """lm-eval's own model of the reference and of the aligned model, at their numbers in LAMBDAS."""
    from tests.support.harnessed import ALIGNED, REFERENCE, hf

    return {0: hf(REFERENCE), 2: hf(ALIGNED)}
