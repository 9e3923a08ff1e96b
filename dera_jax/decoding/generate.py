"""Prompts to completions at one strength: the call that most programs need."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches

from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import Prompt, as_prompts
from dera_jax.decoding.complete import Draw, complete, tries_of, width_of
from dera_jax.decoding.config import DecodeConfig, rows_of
from dera_jax.decoding.conversation import Conversation, converse
from dera_jax.decoding.request import Completion
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, as_rule, linear_rule
from dera_jax.strengths import Strength, as_strengths

HABITS = {
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "max_completion_length": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "n": "num_samples",
    "num_return_sequences": "num_samples",
    "num_generations": "num_samples",
    "batch_size": "rows",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "until": "stop",
    "random_seed": "seed",
    "lambda_": "lambdas",
    "lambdas": "lambda_",
    "strength": "lambda_",
    "strengths": "lambdas",
    "reward": "rewards",
    "reward_funcs": "rewards",
    "output_dir": "out",
}
"""Names of other libraries and what we call the same thing."""


def decode_config(settings: Mapping, function: Callable) -> DecodeConfig:
    """Returns the fields of `DecodeConfig` that `function` was given.

    Raises:
      TypeError: it was given something else; with our name for it, if that can be told.
      ValueError: a field out of its range.
    """
    ours = [field.name for field in fields(DecodeConfig)]
    parameters = inspect.signature(function).parameters.values()
    names = ours + [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if unknown := next((name for name in settings if name not in ours), None):
        close = [HABITS[unknown]] if HABITS.get(unknown) in names else get_close_matches(unknown, names, 1)
        hint = f": here it is {close[0]}" if close else f"; there are {', '.join(names)}"
        raise TypeError(f"{function.__name__}() has no setting {unknown}{hint}")
    return DecodeConfig(**settings)


def _strength(value: object, num_aligned: int) -> Strength:
    """Returns the one strength that `value` is; one model alone (none aligned) takes ()."""
    # A sequence is one number per model.
    strengths = as_strengths(value if isinstance(value, str) else [value], num_aligned, "lambda_")
    if len(strengths) != 1:
        raise ValueError(f"lambda_: expected one strength, found {len(strengths)}")
    return strengths[0]


def generate(
    policies: Sequence[Policy],
    prompts: Sequence[str | dict | Prompt],
    lambda_: object = 0.7,
    *,
    num_samples: int = 1,
    rows: int | str | None = None,
    rule: Rule | str = linear_rule,
    draw: Draw = complete,
    **settings,
) -> list[Completion]:
    """Returns completions of `prompts` by the policy realigned at `lambda_`, prompt by prompt.

    A prompt with several turns has a completion for each turn, sample by sample.

    Args:
      policies: of `load_policies`, the reference first.
      lambda_: strength, a number or text such as "1/2"; a tuple of numbers for several aligned models.
      num_samples: completions of each prompt.
      rows: completions decoded at a time; None or "auto": as many as there are to make, at most 32.
      rule: makes one model's logits of all models'; a function, or a name such as "plausible:alpha=0.1".
      draw: makes a completion of each; `complete` draws it from the realigned policy.
      settings: fields of `DecodeConfig`, such as max_new_tokens and temperature.

    Raises:
      TypeError: an unknown setting.
      ValueError: bad input; or a rule whose logits are not finite.
    """
    config, strength = decode_config(settings, generate), _strength(lambda_, len(policies) - 1)
    prompts = as_prompts(prompts)
    conversations = [
        Conversation(prompt, encoded, sample, (strength,) * prompt.num_turns)
        for prompt, encoded in zip(
            prompts, encode_prompts(policies, prompts, config.max_new_tokens), strict=True
        )
        for sample in range(num_samples)
    ]
    order = {(c.prompt.prompt_id, c.sample): number for number, c in enumerate(conversations)}
    number = rows_of(rows, math.ceil(len(conversations) * tries_of(draw)), width_of(draw))
    made = converse(policies, conversations, config, number, as_rule(rule), draw=draw)
    return sorted(made, key=lambda c: (order[c.request.prompt.id, c.request.sample], c.request.turn))
