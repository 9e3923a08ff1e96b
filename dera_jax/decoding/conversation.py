"""Prompts to completions, turn by turn: a later turn continues from the answers before it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches

from dera_jax.configs import DecodeConfig, rows_of
from dera_jax.decode import Rule
from dera_jax.encoding import DoesNotFit, EncodedPrompt, encode_prompts, encode_turn
from dera_jax.generate import Cell, Completion, complete
from dera_jax.policies import Policy
from dera_jax.prompts import Prompt, as_prompts
from dera_jax.realign import linear_rule
from dera_jax.strengths import Strength, as_strengths
from dera_jax.usage import Usage

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


@dataclass(frozen=True)
class Conversation:
    """A prompt, answered at one strength (or one for each turn) with one sample's noise."""

    prompt: Prompt
    first: EncodedPrompt
    """Its first turn."""
    sample: int
    strengths: tuple[Strength, ...]
    """Of each turn."""

    def cell(self, policies: Sequence[Policy], answers: Sequence[str], max_new_tokens: int) -> Cell:
        """Returns the turn after the `answers`.

        Raises:
          DoesNotFit: it is too long for a model's context.
        """
        turn = len(answers)
        asked = encode_turn(policies, self.prompt, answers, max_new_tokens) if turn else self.first
        return Cell(asked, self.sample, self.strengths[turn], turn)


def generate(
    policies: Sequence[Policy],
    prompts: Sequence[str | dict | Prompt],
    lambda_: object = 0.7,
    *,
    num_samples: int = 1,
    rows: int | str | None = None,
    rule: Rule = linear_rule,
    **settings,
) -> list[Completion]:
    """Returns completions of `prompts` by the policy realigned at `lambda_`, prompt by prompt.

    Of a prompt with several turns every answer is there, those of one sample after each other.

    Args:
      policies: of `load_policies`, the reference first.
      lambda_: strength, a number or text such as "1/2"; a tuple of numbers for several aligned models.
      num_samples: completions of each prompt.
      rows: completions decoded at a time; None or "auto": as many as there are to make, at most 32.
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
    made = converse(policies, conversations, config, rows_of(rows, len(conversations)), rule)
    return sorted(made, key=lambda c: (order[c.cell.prompt.id, c.cell.sample], c.cell.turn))


def converse(
    policies: Sequence[Policy],
    conversations: Sequence[Conversation],
    config: DecodeConfig,
    rows: int,
    rule: Rule = linear_rule,
    known: Callable[[Conversation, int], str | None] = lambda conversation, turn: None,
    usage: Usage | None = None,
) -> Iterator[Completion]:
    """Yields every answer as it ends, first turns first.

    A conversation whose next turn would not fit a model's context ends there.

    Args:
      known: the answer of a turn that was given before, which is not given again.
      usage: is added to.
    """
    answers: list[list[str]] = [[] for _ in conversations]
    for turn in range(max((len(c.strengths) for c in conversations), default=0)):
        waiting: dict[tuple, list[str]] = {}
        cells = []
        for conversation, given in zip(conversations, answers, strict=True):
            if len(given) != turn or turn == len(conversation.strengths):
                continue
            if (answer := known(conversation, turn)) is not None:
                given.append(answer)
                continue
            try:
                cells.append(conversation.cell(policies, given, config.max_new_tokens))
            except DoesNotFit:
                if turn == 0:
                    raise
                continue
            waiting[_key(cells[-1])] = given
        for completion in complete(policies, cells, config, rows, rule, usage):
            waiting[_key(completion.cell)].append(completion.text)
            yield completion


def _key(cell: Cell) -> tuple:
    return cell.prompt.id, cell.sample, cell.lambda_
