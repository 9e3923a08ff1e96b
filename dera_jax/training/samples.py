"""What a policy in training writes, for a person to read."""

from collections.abc import Callable, Sequence

from jaxtyping import PyTree

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.data.turn_ends import turn_ends
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.policies.policy import Policy, with_params
from dera_jax.training import parameters

COUNT = 4
LONGEST = 64
"""Tokens of a sample."""


def sampler(policy: Policy, prompts: Sequence[Sequence[int]], seed: int) -> Callable[[PyTree], list[dict]]:
    """Returns what makes trained parameters complete the first of `prompts`, by the same noise always."""
    _, frozen = parameters.split(policy.params)
    room = policy.config.max_positions - LONGEST
    chosen = [tuple(ids) for ids in prompts if len(ids) <= room]
    asked = list(dict.fromkeys(chosen))[:COUNT]
    texts = [policy.tokenizer.decode(ids, skip_special_tokens=True) for ids in asked]
    # A prompt in which turns are closed is a chat.
    ends = set(turn_ends(policy.tokenizer, policy.template))
    requests = [
        Request(
            EncodedPrompt(Prompt(n, text), (ids,), (policy.config.start_token,), tuple(ends & {*ids})), 0, ()
        )
        for n, (ids, text) in enumerate(zip(asked, texts, strict=True))
    ]

    def sample(params: PyTree) -> list[dict]:
        if not requests:
            return []
        drawing = with_params(policy, parameters.whole(policy.config, params, frozen))
        config = DecodeConfig(max_new_tokens=LONGEST, seed=seed)
        drawn = sorted(
            complete((drawing,), requests, config, len(requests)), key=lambda c: c.request.prompt.id
        )
        return [{"prompt": texts[c.request.prompt.id], "completion": c.text} for c in drawn]

    return sample
