"""How far one model's next-token distributions lie from another's, on given text."""

from collections.abc import Sequence

import numpy as np

from dera_jax.data import Prompt
from dera_jax.metrics import Estimate, estimate
from dera_jax.policies import Policy
from dera_jax.score import score_tokens
from dera_jax.tokenizer import encode_prompt


def kl_per_token(policies: Sequence[Policy], prompts: Sequence[Prompt], rows: int) -> Estimate:
    """Returns the mean over tokens of KL(second ‖ first), in nats, with its interval over texts.

    Every token of a text but the first is a place where the two distributions are compared, over
    the whole vocabulary.

    Raises:
      ValueError: a text of one token.
    """
    texts = [encode_prompt(policies[-1].tokenizer, p.text, p.messages, p.prefix) for p in prompts]
    for prompt, ids in zip(prompts, texts, strict=True):
        if len(ids) < 2:
            raise ValueError(f"prompt {prompt.prompt_id!r}: expected at least 2 tokens, found {len(ids)}")
        if len(ids) > min(policy.config.max_positions for policy in policies):
            raise ValueError(f"prompt {prompt.prompt_id!r}: {len(ids)} tokens do not fit the models' context")
    first = [(ids[:1],) * len(policies) for ids in texts]
    # The mixture at λ = 1 is the second model.
    scored = list(score_tokens(policies, first, [ids[1:] for ids in texts], [1.0], rows))
    values = np.concatenate([s.kl_to_reference[0] for s in scored])
    groups = np.repeat(np.arange(len(scored)), [len(s.tokens) for s in scored])
    return estimate(values, groups.tolist())
