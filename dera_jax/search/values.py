"""What a value head says of candidates, whole or not, by the tokens that they were drawn as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.data.buckets import padded_batches
from dera_jax.decoding.request import Completion
from dera_jax.decoding.value_models import check_value_of
from dera_jax.models.value import ValueConfig
from dera_jax.policies.load import load_value_policy
from dera_jax.policies.policy import Policy
from dera_jax.rewards.reading_on import Reader

ROWS = 16
"""Candidates read at a time."""
Read = Callable[[Sequence[Sequence[int]], Sequence[int]], np.ndarray]
"""Of texts and a next word of each: the words' values."""


@dataclass(frozen=True)
class ValueScore:
    """`value:DIR`: V of a candidate's last token given what stands before it, in the reward's unit."""

    policy: Policy
    """Of `load_value_policy`."""
    name: str
    """The specification as written."""
    weight: float = 1.0
    """In a sum of several; what the score itself gives is not multiplied."""

    read: Read | None = None
    """Returns the value of a next word of each text; by default each text is read as a whole."""

    @property
    def fingerprint(self) -> str:
        """Of the head and of the model that it stands on."""
        return self.policy.fingerprint

    def check_policies(self, policies: Sequence[Policy]) -> None:
        """Raises ValueError where the candidates are tokens of another model than the head has read."""
        try:
            check_value_of(self.policy, policies[0])
        except ValueError as error:
            raise ValueError(f"score {shown(self.name, 200)}: {error}") from None

    def __call__(self, completions: Sequence[Completion]) -> Float[np.ndarray, " candidates"]:
        """Returns the value of each candidate."""
        prompts = [completion.request.prompt.tokens[0] for completion in completions]
        return last_values(self.policy, prompts, [each.tokens for each in completions], self.read)

    def reading_on(self) -> "ValueScore":
        """Returns the same score for texts of a search: of each, only what is new since the last ones is read."""
        return replace(self, read=Reader(self.policy.config, self.policy.params))


def make(argument: str, spec: str) -> ValueScore:
    """Returns the score `value:DIR`.

    Raises:
      ValueError: no value head lies there, or it cannot be loaded.
    """
    return ValueScore(load_value_policy(argument), spec)


def last_values(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    read: Read | None = None,
) -> Float[np.ndarray, " candidates"]:
    """Returns  V(x, y₍<T₎, y_T)  of each completion's last token.

    Args:
      policy: a value head.
      prompts: token ids, at least one for each completion.
      completions: token ids, at least one; EOS, where one has ended, is its last.
      read: see `ValueScore`.

    Raises:
      ValueError: a completion without a token, or a text that does not fit the model's context.
    """
    texts = [(*prompt, *tokens[:-1]) for prompt, tokens in zip(prompts, completions, strict=True)]
    if not all(map(len, completions)):
        raise ValueError(f"{shown(policy.name, 200)}: a completion without tokens has no last one to value")
    context, longest = policy.config.max_positions, max(map(len, texts), default=0)
    if longest > context:
        raise ValueError(
            f"{shown(policy.name, 200)}: a text of {longest} tokens does not fit its context of {context}"
        )
    words = [tokens[-1] for tokens in completions]
    return (read or partial(_read_whole, policy))(texts, words)


def _read_whole(
    policy: Policy, texts: Sequence[Sequence[int]], words: Sequence[int]
) -> Float[np.ndarray, " texts"]:
    found = np.zeros(len(texts), np.float32)
    for part, tokens, mask in padded_batches(texts, ROWS):
        last = np.array([words[number] for number in part] + [0] * (ROWS - len(part)), np.int32)
        found[part] = np.asarray(_forward(policy.config, policy.params, tokens, mask, last))[: len(part)]
    return found


@partial(jax.jit, static_argnames="config")
def _forward(
    config: ValueConfig,
    params: PyTree,
    tokens: Int[Array, "rows length"],
    mask: Bool[Array, "rows length"],
    last: Int[Array, " rows"],
) -> Float[Array, " rows"]:
    return models.bind(config, params).last_value(tokens, mask, last)
