"""How tests call judges: the key that they give, and the line that a call fails with."""

import pytest

KEY = "sk-very-secret"


def failure(call):
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    return str(caught.value)
