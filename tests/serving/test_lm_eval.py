"""lm-eval's client of completions, unchanged, has from the server the numbers of `eval.lm_eval`."""

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from dera_jax.scoring import harness
from tests.support.harnessed import LENGTH, REFERENCE

CHOICES = [
    (context, choice)
    for context in ("Lily saw a big", "Once upon a time, there was a girl. Her mom said")
    for choice in (" dog", " cat", " red ball and ran away", ".")
]
WRITTEN = {"until": ["."], "max_gen_toks": 16, "do_sample": False}


@pytest.mark.parametrize("strength", [0.5, 1.7])
def test_numbers_are_those_of_eval_lm_eval(strength, url, pair):
    theirs = LocalCompletionsAPI(
        model=f"toy@{strength}", base_url=f"{url}/v1/completions", tokenizer=str(REFERENCE),
        tokenizer_backend="huggingface", add_bos_token=True, max_length=LENGTH,
    )  # fmt: skip
    ours = harness.Realigned(pair, [(strength,)], 4, LENGTH).at(0)
    asked = [Instance("loglikelihood", {}, each, n) for n, each in enumerate(CHOICES)]
    texts = [
        Instance("generate_until", {}, (context, dict(WRITTEN)), n)
        for n, (context, _) in enumerate(CHOICES[::4])
    ]
    found, expected = theirs.loglikelihood(asked), ours.loglikelihood(asked)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert theirs.generate_until(texts) == ours.generate_until(texts)


def test_what_the_model_says_itself_is_greedy(url, pair):
    """The likeliest word's figure is the token's own, to the last digit."""
    theirs = LocalCompletionsAPI(
        model="toy@0.5", base_url=f"{url}/v1/completions", tokenizer=str(REFERENCE),
        tokenizer_backend="huggingface", add_bos_token=True, max_length=LENGTH,
    )  # fmt: skip
    context = "Lily saw a big"
    (said,) = theirs.generate_until([Instance("generate_until", {}, (context, {"max_gen_toks": 6}), 0)])
    ((_, greedy),) = theirs.loglikelihood([Instance("loglikelihood", {}, (context, said), 0)])
    assert said and greedy
