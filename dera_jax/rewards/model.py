"""A reward model as a reward, `model:DIR`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.data.answers import encode_whole
from dera_jax.data.buckets import padded_batches
from dera_jax.data.messages import template_variables
from dera_jax.models.reward import RewardConfig
from dera_jax.policies.reward_models import RewardPolicy, load_reward_model
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.reading_on import Reader

ROWS = 16
"""Texts read at a time."""


@dataclass(frozen=True)
class ModelReward:
    """`model:DIR`: what a reward model says of prompt and completion together.

    Chats go through its own chat template. Where the completion of a raw text ended with EOS, the text does too.
    A text beyond its context has no number.
    """

    policy: RewardPolicy
    spec: str
    read: Callable[[Sequence[list[int]]], Float[np.ndarray, " texts"]] | None = None
    """Returns the reward of texts within the context; by default each text is read as a whole."""

    @property
    def fingerprint(self) -> str | None:
        """Of the model."""
        return self.policy.fingerprint

    def check(self, prompts: Sequence[str | Sequence[Mapping]]) -> None:
        """Raises ValueError where a prompt is a chat that its template does not take."""
        for prompt in prompts:
            if not isinstance(prompt, str):
                self._encode(prompt, "…", "length")

    def reading_on(self) -> "ModelReward":
        """Returns the same reward for texts of a search: of each, only what is new since the last ones is read."""
        config = self.policy.config
        if config.head != "last":  # it reads both ways, or with an encoder
            return self
        reader = Reader(config, self.policy.params)
        return replace(
            self, read=lambda texts: reader([_without_padding(t, config.pad_token) for t in texts])
        )

    def __call__(self, completions: Completions) -> list[float | None]:
        seen = completions.prompts, completions.completions, completions.finish_reasons
        given = [{name: each[n] for name, each in completions.columns.items()} for n in range(len(seen[0]))]
        texts = [self._encode(*row) for row in zip(*seen, given, strict=True)]
        context = self.policy.config.trunk.max_positions
        read = self.read or partial(reward_texts, self.policy)
        found = iter(read([text for text in texts if len(text) <= context]).tolist())
        return [next(found) if len(text) <= context else None for text in texts]

    def _encode(
        self, prompt: str | Sequence[Mapping], completion: str, reason: str, columns: Mapping | None = None
    ) -> list[int]:
        tokenizer = self.policy.tokenizer
        if not isinstance(prompt, str) and tokenizer.chat_template is None:
            raise ValueError(
                f"reward {shown(self.spec, 200)}: the prompts are chats, but its tokenizer has no chat template; "
                f"put one into {shown(self.policy.folder / 'chat_template.jinja', 200)}"
            )
        reader = self.policy.config.trunk.encoder_decoder
        variables = {} if isinstance(prompt, str) else template_variables(columns or {}, "prompt")
        try:
            return encode_whole(
                tokenizer, prompt, completion, reader=reader, has_ended=reason == "eos", variables=variables
            )
        except ValueError as error:
            raise ValueError(f"reward {shown(self.spec, 200)}: {error}") from None


def make(argument: str, spec: str) -> ModelReward:
    """Returns the reward `model:DIR`."""
    return ModelReward(load_reward_model(argument), spec)


def reward_texts(policy: RewardPolicy, texts: Sequence[Sequence[int]]) -> Float[np.ndarray, " texts"]:
    """Returns the reward of each text, given as token ids.

    Raises:
      ValueError: a text that does not fit the model's context.
    """
    context = policy.config.trunk.max_positions
    longest = max(map(len, texts), default=0)
    if longest > context:
        raise ValueError(
            f"{shown(policy.name, 200)}: a text of {longest} tokens does not fit its context of {context}"
        )
    found = np.zeros(len(texts), np.float32)
    for part, tokens, mask in padded_batches(texts, ROWS):
        found[part] = np.asarray(_forward(policy.config, policy.params, tokens, mask))[: len(part)]
    return found


def _without_padding(text: list[int], pad_token: int | None) -> list[int]:
    """Returns a text up to the token that its reward is read at; see `RewardConfig.pad_token`."""
    length = len(text)
    while length > 1 and text[length - 1] == pad_token:
        length -= 1
    return text[:length]


@partial(jax.jit, static_argnames="config")
def _forward(
    config: RewardConfig, params: PyTree, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
) -> Float[Array, " rows"]:
    return models.bind(config, params)(tokens, mask)
