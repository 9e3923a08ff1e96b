"""Fixtures of the trainings' tests."""

import pytest

from tests.support.toy import tiny_policy


@pytest.fixture
def tiny(toy):
    return tiny_policy(toy, 0)
