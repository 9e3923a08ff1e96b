"""What is compared: pairs, prompts, and one side's work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import Draw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.policies.load import fresh_policy
from dera_jax.policies.policy import Policy

LAMBDA = 0.7
PROMPT_TOKENS = 16


def random_policies(folder: Path, shape: Mapping[str, Any]) -> tuple[Policy, ...]:
    """Returns two Llamas of one shape with random parameters.

    Args:
      folder: where the configuration and a tokenizer are written.
      shape: fields of `config.json`.
    """
    words = WordLevel({f"w{i}": i for i in range(shape["vocab_size"])}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(dict(shape)), encoding="utf-8")
    return tuple(fresh_policy(str(folder), seed) for seed in range(2))


def without_eos(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Returns policies whose completions only their length ends."""
    return tuple(replace(policy, eos_ids=()) for policy in policies)


def make_prompt(policies: Sequence[Policy], new_tokens: int, number: int = 0) -> EncodedPrompt:
    """Returns `PROMPT_TOKENS` arbitrary words, others for every number.

    Raises:
      ValueError: they and `new_tokens` do not fit a model's context.
    """
    for policy in policies:
        if PROMPT_TOKENS + new_tokens - 1 > policy.config.max_positions:
            raise ValueError(
                f"{policy.name}: {PROMPT_TOKENS} prompt tokens and {new_tokens} new ones do not fit its "
                f"context of {policy.config.max_positions} tokens"
            )
    vocab = min(len(policy.tokenizer) for policy in policies)
    ids = tuple(np.random.default_rng(number).integers(vocab, size=PROMPT_TOKENS).tolist())
    return EncodedPrompt(Prompt(number, "random words"), (ids,) * len(policies))


def complete_all(
    policies: Sequence[Policy],
    requests: Sequence[Request],
    rows: int,
    new_tokens: int,
    temperature: float = 1.0,
    draw: Draw = complete,
) -> list[list[int]]:
    """Returns the tokens of every request, in the order of `requests`; it takes all that a user waits for."""
    config = DecodeConfig(max_new_tokens=new_tokens, temperature=temperature)
    tokens = {id(done.request): done.tokens for done in draw(policies, requests, config, rows)}
    return [tokens[id(request)] for request in requests]
