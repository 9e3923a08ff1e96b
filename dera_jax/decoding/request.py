"""A request, a prompt at a strength, and the completion that answers it."""

from dataclasses import dataclass

import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.strengths import Strength


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    prompt: EncodedPrompt
    sample: int
    lambda_: Strength
    turn: int = 0
    """Of the conversation, from 0."""


@dataclass(frozen=True)
class Completion:
    """One completion with the figures of each of its tokens, in nats."""

    request: Request
    tokens: list[int]
    """EOS, or what closes a chat's turn in its place, included."""
    text: str
    finish_reason: str
    """eos, stop or length."""
    logprobs: np.ndarray
    model_logprobs: np.ndarray
    """[tokens, models]"""
    sampling_logprobs: np.ndarray
    kl_to_reference: np.ndarray
    log_normalizers: np.ndarray | None

    @property
    def prompt(self) -> str | tuple[dict, ...]:
        """What was asked: the text, or the messages."""
        asked = self.request.prompt.prompt
        return asked.messages if asked.text is None else asked.text

    @property
    def length(self) -> int:
        """Tokens without EOS."""
        return len(self.tokens) - (self.finish_reason == "eos")
