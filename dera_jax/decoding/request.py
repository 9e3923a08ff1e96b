"""A request, a prompt at a strength, and the completion that answers it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.strengths import Strength


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    prompt: EncodedPrompt
    sample: int
    lambda_: Strength
    turn: int = 0
    """Of the conversation, from 0."""
    config: DecodeConfig | None = None
    """How it is drawn; None: as its batch is. Only `kv_cache` must be the batch's."""
    attempt: int = 0
    """From 0: what is drawn once more for the same prompt, sample and turn is drawn with other noise."""

    @property
    def key(self) -> tuple:
        """What tells it from the other requests of a run: prompt, sample, turn, strength, attempt."""
        return self.prompt.id, self.sample, self.turn, self.lambda_, self.attempt


class Shape(NamedTuple):
    """What all requests of a batch have in common: their prompts may differ in length, but encoders' may not."""

    alike: bool
    """Whether all models read a prompt in one bucket."""
    encoded: tuple[int, ...]
    """Of each model, the bucket that its encoder reads; 0 without one."""


def shape_of(request: Request) -> Shape:
    """Returns the shape of the batches that can take a request."""
    buckets, slots = request.prompt.buckets, request.prompt.slots
    encoded = tuple(0 if taken else bucket for bucket, taken in zip(buckets, slots, strict=True))
    return Shape(len(set(buckets)) == 1, encoded)


@dataclass(frozen=True)
class Searched:
    """What a completion was chosen from, where several candidates were drawn."""

    candidates: int
    tokens: int
    """Of all candidates together, EOS included."""
    passes: int
    """Forward passes of every model that it took: one for each step of each row."""
    score: float
    """Of the chosen one."""
    runner_up: float | None
    """The highest score among the others; None if there are none."""
    trace: list[list[dict]] | None = None
    """Every decision with its candidates, if they are kept: see `search.traces`."""


@dataclass(frozen=True)
class Tried:
    """How a completion of the response-level optimum was found."""

    tries: int
    """Completions that were begun, this one included."""
    tokens: int
    """Of all of them together, EOS included."""
    cut: int
    """How many of them ran into the limit."""
    accepted: bool = True
    """Whether the completion is an exact draw; else it is the last try, and none was accepted."""
    log_weight: float | None = None
    """log Π z of one that was not accepted; None: it was, or its weight is 0."""


@dataclass(frozen=True)
class Population:
    """What a completion of the response-level optimum was drawn from, where all completions of a population count."""

    particles: int
    tokens: int
    """Of all of them together, EOS included, those that were given up too."""
    log_weight: float | None
    """log of an estimate of Z(λ), whose mean is Z(λ) itself; None: no completion has a weight above 0."""
    effective: float
    """Effective size (Σ w)² / Σ w² at the end."""
    resamplings: int
    ancestors: int
    """How many of the completions that it began with those at its end go back to."""
    cut: int
    """Of those at its end, how many the limit has cut off."""


@dataclass(frozen=True)
class Chain:
    """How a completion of the response-level optimum was found at the end of a chain of completions."""

    steps: int
    moves: int
    """Steps that took the completion that was proposed."""
    tokens: int
    """Of everything that was drawn, EOS included."""
    cut: int
    """How many of the completions, that it began with and that were proposed, ran into the limit."""

    def after(self, moves: bool, tokens: int, cut: bool) -> "Chain":
        """Returns the chain with one more step."""
        return Chain(self.steps + 1, self.moves + moves, self.tokens + tokens, self.cut + cut)


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
    search: Searched | None = None
    """What it was chosen from, if several candidates were drawn."""
    exact: Tried | Population | Chain | None = None
    """How it was found, if it is a draw from the response-level optimum."""

    @property
    def prompt(self) -> str | tuple[dict, ...]:
        """What was asked: the text, or the messages."""
        asked = self.request.prompt.prompt
        return asked.messages if asked.text is None else asked.text

    @property
    def length(self) -> int:
        """Tokens without EOS."""
        return len(self.tokens) - (self.finish_reason == "eos")
