"""How far one model's next-token distributions lie from another's, on given text."""

from collections.abc import Sequence

import numpy as np

from dera_jax.analysis.estimates import Estimate, estimate
from dera_jax.common.usable import Dropped, Unusable, keep_usable
from dera_jax.data.encoding import EncodedPrompt, encode_turn
from dera_jax.data.prompts import Prompt
from dera_jax.policies.policy import Policy
from dera_jax.scoring.score import score_tokens


def kl_per_token(policies: Sequence[Policy], texts: Sequence[EncodedPrompt], rows: int) -> Estimate:
    """Returns the mean over tokens of KL(second ‖ first), in nats, with its interval over texts.

    Every token of a text but the first is a place where the two distributions are compared, over
    the whole vocabulary.
    """
    first = [[ids[:1] for ids in text.tokens] for text in texts]
    # The mixture at λ = 1 is the second model.
    scored = list(score_tokens(policies, first, [text.tokens[0][1:] for text in texts], [1.0], rows))
    values = np.concatenate([s.kl_to_reference[0] for s in scored])
    groups = np.repeat(np.arange(len(scored)), [len(s.tokens) for s in scored])
    return estimate(values.tolist(), groups.tolist())


def encode_texts(
    policies: Sequence[Policy], prompts: Sequence[Prompt]
) -> tuple[list[EncodedPrompt], Dropped]:
    """Returns texts that models are compared on, token by token, and what became of the others.

    Raises:
      ValueError: a model with an encoder; or no text can be used.
    """
    for policy in policies:
        if policy.config.encoder_decoder:
            raise ValueError(f"{policy.name}: expected a decoder-only model, found one with an encoder")

    def encode(prompt: Prompt) -> EncodedPrompt:
        text = encode_turn(policies, prompt, (), max_new_tokens=0)
        if len(text.tokens[0]) < 2:
            raise Unusable("expected at least 2 tokens, found 1")
        return text

    return keep_usable(prompts, encode, lambda prompt: prompt.where or f"prompt {prompt.prompt_id!r}")
