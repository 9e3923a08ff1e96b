"""Prompts to completions, turn by turn: a later turn continues from the answers before it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dera_jax.data.encoding import DoesNotFit, EncodedPrompt, encode_turn
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import Draw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule
from dera_jax.strengths import Strength


@dataclass(frozen=True)
class Conversation:
    """A prompt, answered at one strength (or one for each turn) with one sample's noise."""

    prompt: Prompt
    first: EncodedPrompt
    """Its first turn."""
    sample: int
    strengths: tuple[Strength, ...]
    """Of each turn."""

    def request(self, policies: Sequence[Policy], answers: Sequence[str], max_new_tokens: int) -> Request:
        """Returns the turn after the `answers`.

        Raises:
          DoesNotFit: it is too long for a model's context.
        """
        turn = len(answers)
        asked = encode_turn(policies, self.prompt, answers, max_new_tokens) if turn else self.first
        return Request(asked, self.sample, self.strengths[turn], turn)


def converse(
    policies: Sequence[Policy],
    conversations: Sequence[Conversation],
    config: DecodeConfig,
    rows: int,
    rule: Rule = linear_rule,
    known: Callable[[Conversation, int], str | None] = lambda conversation, turn: None,
    usage: Usage | None = None,
    draw: Draw = complete,
) -> Iterator[Completion]:
    """Yields every answer as it ends, first turns first.

    A conversation whose next turn would not fit a model's context ends there.

    Args:
      known: the answer of a turn that was given before, which is not given again.
      usage: is added to.
      draw: makes the completions of a turn.
    """
    answers: list[list[str]] = [[] for _ in conversations]
    for turn in range(max((len(c.strengths) for c in conversations), default=0)):
        waiting: dict[tuple, list[str]] = {}
        requests = []
        for conversation, given in zip(conversations, answers, strict=True):
            if len(given) != turn or turn == len(conversation.strengths):
                continue
            if (answer := known(conversation, turn)) is not None:
                given.append(answer)
                continue
            try:
                requests.append(conversation.request(policies, given, config.max_new_tokens))
            except DoesNotFit:
                if turn == 0:
                    raise
                continue
            waiting[requests[-1].key] = given
        for completion in draw(policies, requests, config, rows, rule, usage):
            waiting[completion.request.key].append(completion.text)
            yield completion
