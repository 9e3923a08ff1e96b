"""The figures of completions, compared to the bit."""

import numpy as np

FIGURES = ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference", "log_normalizers")


def assert_bit_equal(one, other):
    """Fails unless two completions are the same, tokens and all figures."""
    assert one.tokens == other.tokens and one.finish_reason == other.finish_reason
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
