"""What candidates are ranked by: a reward, a value head, a figure of the pair itself, or a weighted sum of several."""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from dera_jax.common.user_code import UserCodeError, describe
from dera_jax.data.prompts import prompt_text
from dera_jax.decoding.request import Completion
from dera_jax.policies.policy import Policy
from dera_jax.policies.value_heads import check_language_models
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward, as_rewards, parse_rewards
from dera_jax.rewards.user import taken
from dera_jax.search.notation import FIGURES, LOG_RATIO, VALUE, split_score

Decode = Callable[[Sequence[int]], str]
LARGEST = 1e100
"""Of a score, as of a row's numbers."""


class ScoreError(UserCodeError):
    """A score has failed for candidates, which are named with their prompt."""


@dataclass(frozen=True)
class Score:
    """A weighted sum of rewards, values and figures of the pair; a function of completions."""

    name: str
    """The specification as written, or the name of the reward or function it was made of."""
    rewards: tuple[Reward, ...] = ()
    """With their weights."""
    figures: tuple[tuple[str, float], ...] = ()
    """Those of `notation.FIGURES` that are part of the sum, with their weights."""
    values: tuple[Any, ...] = ()
    """Each a `search.values.ValueScore`, with its weight."""

    @property
    def fingerprint(self) -> str | None:
        """Hash of the models, files and code that are read; None where the name alone decides it."""
        found = [each.fingerprint for each in (*self.rewards, *self.values)]
        if not any(found):
            return None
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def reading_on(self) -> "Score":
        """Returns the same score for one batch: its models read of each text only what is new since the last ones."""
        rewards, values = (tuple(each.reading_on() for each in some) for some in (self.rewards, self.values))
        return replace(self, rewards=rewards, values=values)

    def check(self, prompts: Sequence[str | Sequence[Mapping]]) -> None:
        """Raises ValueError where a reward cannot judge answers to the prompts."""
        for reward in self.rewards:
            reward.check(prompts)

    def check_models(self, aligned: int) -> None:
        """Raises ValueError where there is no one aligned model, which the log-ratio needs."""
        if LOG_RATIO in dict(self.figures) and aligned != 1:
            raise ValueError(f"{LOG_RATIO}: expected one aligned model, found {aligned}")

    def check_policies(self, policies: Sequence[Policy]) -> None:
        """Raises ValueError where a value head is of another reference, or where the log-ratio would be of one."""
        if LOG_RATIO in dict(self.figures):
            check_language_models(policies)
        for value in self.values:
            value.check_policies(policies)

    def __call__(self, completions: Sequence[Completion], decode: Decode) -> list[float]:
        """Returns the score of each completion, `parts` added up.

        Raises:
          ScoreError: see `parts`.
        """
        return self.parts(completions, decode).sum(axis=0).tolist()

    def parts(
        self, completions: Sequence[Completion], decode: Decode
    ) -> Float[np.ndarray, "parts completions"]:
        """Returns what each figure and reward adds to the score of each completion.

        Args:
          decode: token ids to text.

        Raises:
          ScoreError: a reward gave another count, or what is no finite number, or it failed; the prompt and
            the candidates are named.
        """
        found = [
            weight * np.array([figure(name, each) for each in completions]) for name, weight in self.figures
        ]
        found += [value.weight * value(completions).astype(np.float64) for value in self.values]
        seen = as_rewards_see(completions, decode) if self.rewards else None
        found += [reward.weight * np.array(_values(reward, completions, seen)) for reward in self.rewards]
        for completion, total in zip(completions, np.sum(found, axis=0), strict=True):
            if not abs(total) <= LARGEST:
                raise ScoreError(
                    f"score {self.name}: expected a number of at most {LARGEST:g}, found {total} for "
                    f"{_named(completion)}"
                )
        return np.array(found)


def parse_score(text: str) -> Score:
    """Returns the score that `SCORE[*WEIGHT+SCORE*WEIGHT…]` says; files and modules are read now.

    Raises:
      ValueError: a score that is unknown or broken, or a weight that is no number.
    """
    parts = split_score(text)
    kinds = [spec.partition(":")[0] for spec, _ in parts]
    figures = tuple(part for part in parts if part[0] in FIGURES)
    values = [
        replace(_value(spec.partition(":")[2], spec), weight=weight)
        for kind, (spec, weight) in zip(kinds, parts, strict=True)
        if kind == VALUE
    ]
    rewards = [
        replace(_reward(spec), weight=weight)
        for kind, (spec, weight) in zip(kinds, parts, strict=True)
        if kind != VALUE and spec not in FIGURES
    ]
    return Score(text, tuple(rewards), figures, tuple(values))


def as_score(value: object) -> Score:
    """Returns the score that Python code gives.

    Args:
      value: text such as "length:40:60", a function with TRL's signature, a `Reward` or a `Score`.

    Raises:
      TypeError: it is something else.
      ValueError: a broken specification.
    """
    if isinstance(value, Score):
        return value
    if isinstance(value, str):
        return parse_score(value)
    if not callable(value):
        raise TypeError(
            f"score: expected text such as 'length:40:60', a function, a Reward or a Score, found {value!r:.60}"
        )
    (reward,) = as_rewards(value)
    return Score(reward.name, (reward,))


def figure(name: str, completion: Completion) -> float:
    """Returns one of `notation.FIGURES` of a completion, summed over its tokens, in nats."""
    if name == "logprob":
        return float(completion.logprobs.sum(dtype=np.float64))
    reference, *aligned = completion.model_logprobs.sum(axis=0, dtype=np.float64)
    return float(reference if name == "reference-logprob" else aligned[0] - reference)


def as_rewards_see(completions: Sequence[Completion], decode: Decode) -> Completions:
    """Returns completions as rewards see them.

    Args:
      decode: token ids to text.
    """
    prompts = [completion.request.prompt.prompt for completion in completions]
    rows = [
        {
            "prompt": prompt_text(prompt),
            "completion": completion.text,
            "tokens": completion.tokens,
            "length": completion.length,
            "finish_reason": completion.finish_reason,
        }
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return Completions.of(rows, [prompt.columns for prompt in prompts], decode)


def _value(argument: str, spec: str):
    """Returns the score `value:DIR`."""
    if not argument:
        raise ValueError(f"expected {VALUE}:DIR, found {spec!r}")
    # Named, not imported: other scores do without models.
    return importlib.import_module("dera_jax.search.values").make(argument, spec)


def _reward(spec: str) -> Reward:
    try:
        (reward,) = parse_rewards(spec)
    except ValueError as error:
        raise type(error)(str(error).removeprefix("--reward: ")) from None
    return reward


def _values(reward: Reward, completions: Sequence[Completion], seen: Completions) -> list[float]:
    """Returns what a reward gives; errors name prompt and candidates."""
    try:
        found = taken(reward.function(seen), len(completions), reward.name)
    except UserCodeError as error:
        raise ScoreError(f"{_all_named(completions)}: {error}") from error
    except ValueError as error:  # of the reward itself, such as a text beyond a model's context
        raise ValueError(f"{_all_named(completions)}: {error}") from error
    except Exception as error:
        raise ScoreError(f"{_all_named(completions)}: reward {reward.name}: {describe(error)}") from error
    return [_number(reward, value, _named(each)) for value, each in zip(found, completions, strict=True)]


def _number(reward: Reward, value: object, where: str) -> float:
    try:
        number = reward.number(value, where)
    except UserCodeError as error:
        raise ScoreError(str(error).replace("a finite number or None", "a finite number", 1)) from error
    if number is None:
        raise ScoreError(
            f"reward {reward.name}: expected a finite number to rank candidates by, found None for {where}"
        )
    return number


def _named(completion: Completion) -> str:
    return f"prompt {completion.request.prompt.id!r}, candidate {completion.request.attempt}"


def _all_named(completions: Sequence[Completion]) -> str:
    """Returns the prompt and candidates of completions, of which there is at least one."""
    first, last = completions[0], completions[-1]
    if first is last:
        return _named(first)
    if first.request.prompt.id != last.request.prompt.id:
        return f"{_named(first)} to {_named(last)}"
    return f"prompt {first.request.prompt.id!r}, candidates {first.request.attempt} to {last.request.attempt}"
