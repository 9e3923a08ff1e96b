"""The response-level law of a tiny pair (Eq. 5), all of whose completions are listed."""

import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.request import Request
from tests.support.toy import EOS, all_completions, exact_logprobs

PROMPT = (1, 2, 0, 2)


class ResponseLaw:
    """π_ref(y)^{1−λ} π_al(y)^λ of every completion."""

    def __init__(self, policies, lambda_, longest):
        self.completions = all_completions(4, longest)
        each = [exact_logprobs(policy, PROMPT, self.completions) for policy in policies]
        told = [
            [row[np.arange(len(y)), y].sum() for row, y in zip(rows, self.completions, strict=True)]
            for rows in each
        ]
        self.reference, self.aligned = np.array(told)
        self.log_weight = (1 - lambda_) * self.reference + lambda_ * self.aligned
        self.ended = np.array([y[-1] == EOS for y in self.completions])
        mixed = [(1 - lambda_) * r + lambda_ * a for r, a in zip(*each, strict=True)]
        self.log_z = np.array([np.log(np.exp(m).sum(-1)).sum() for m in mixed])

    def probabilities(self, limit_means):
        """The law, and its normalizer among completions of the mixture."""
        weight = np.exp(self.log_weight) * (self.ended if limit_means == "ended" else 1)
        return weight / weight.sum(), weight.sum()

    def counts(self, completions):
        number = {completion: i for i, completion in enumerate(self.completions)}
        return np.bincount([number[tuple(c.tokens)] for c in completions], minlength=len(number))


def requests(lambda_, samples, prompts=1):
    encoded = [EncodedPrompt(Prompt(n, "x"), ((*PROMPT[:3], n % 3),) * 2) for n in range(prompts)]
    if prompts == 1:
        encoded = [EncodedPrompt(Prompt(0, "x"), (PROMPT, PROMPT))]
    return [Request(prompt, sample, (lambda_,)) for prompt in encoded for sample in range(samples)]
