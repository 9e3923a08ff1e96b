"""How far one model's next-token distributions lie from another's, on given text."""

from collections.abc import Sequence

import numpy as np

from dera_jax.encoding import EncodedPrompt, encode_prompts
from dera_jax.metrics import Estimate, estimate
from dera_jax.policies import Policy
from dera_jax.prompts import Prompt
from dera_jax.score import score_tokens


def kl_per_token(policies: Sequence[Policy], prompts: Sequence[Prompt], rows: int) -> Estimate:
    """Returns the mean over tokens of KL(second ‖ first), in nats, with its interval over texts.

    Every token of a text but the first is a place where the two distributions are compared, over
    the whole vocabulary.

    Raises:
      ValueError: a text of one token, or one too long for a model's context; a model with an encoder.
    """
    texts = encode_texts(policies, prompts)
    first = [[ids[:1] for ids in text.tokens] for text in texts]
    # The mixture at λ = 1 is the second model.
    scored = list(score_tokens(policies, first, [text.tokens[0][1:] for text in texts], [1.0], rows))
    values = np.concatenate([s.kl_to_reference[0] for s in scored])
    groups = np.repeat(np.arange(len(scored)), [len(s.tokens) for s in scored])
    return estimate(values.tolist(), groups.tolist())


def encode_texts(policies: Sequence[Policy], prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """Returns texts that models are compared on, token by token.

    Raises:
      ValueError: a text of one token, or one too long for a model's context; a model with an encoder.
    """
    for policy in policies:
        if policy.config.start_token is not None:
            raise ValueError(f"{policy.name}: expected a decoder-only model, found one with an encoder")
    texts = encode_prompts(policies, prompts, max_new_tokens=0)
    for text in texts:
        if len(text.tokens[0]) < 2:
            raise ValueError(f"prompt {text.id!r}: expected at least 2 tokens, found {len(text.tokens[0])}")
    return texts
