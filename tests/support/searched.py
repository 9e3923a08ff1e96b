"""Searches with one candidate against the plain loop."""

import numpy as np

from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import load_prompts
from dera_jax.decoding.complete import complete_unshared, run_batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request, shape_of
from dera_jax.rules.rule import linear_rule
from dera_jax.search.blocks import blocks

CONFIG = DecodeConfig(max_new_tokens=37, seed=3)
APART = 2e-4
"""Nats between the figures of a token that is the same."""


def requests_of(policies, count=3, samples=2, strengths=((0.5,),)):
    prompts = encode_prompts(policies, load_prompts("toy", count), 64)
    return [Request(p, sample, s) for p in prompts for sample in range(samples) for s in strengths]


def check_driver(policies, requests, length, config=CONFIG, rule=linear_rule, rows=3, apart=APART):
    """One candidate is the plain loop, whatever a block's length."""
    plain = {done.request.key: done for done in complete_unshared(policies, requests, config, rows, rule)}
    batch = blocks(1, length, "logprob").batch(policies, shape_of(requests[0]), config, rows, rule)
    found = list(run_batch(batch, requests))
    assert len(found) == len(plain)
    same = 0
    for done in found:
        expected = plain[done.request.key]
        same += done.tokens == expected.tokens
        if done.tokens == expected.tokens:
            assert (done.text, done.finish_reason) == (expected.text, expected.finish_reason)
            for name in ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference"):
                np.testing.assert_allclose(
                    getattr(done, name), getattr(expected, name), atol=apart, err_msg=name
                )
    # Rounding may change a draw.
    assert same >= len(found) - 1
