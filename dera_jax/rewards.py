"""Rewards: completions to numbers, named as users write them: `length:40:60:\\n`, `keywords:tea|milk`.

A reward's name is its specification, word for word; it is the reward's key in rows.
"""

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dera_jax.completions import Completions
from dera_jax.text_rewards import keywords, length, lexicon, slots


@dataclass(frozen=True)
class Reward:
    """A function of completions that is held to its promise: one finite number, or None, for each."""

    name: str
    """The specification as written."""
    function: Callable[[Completions], Sequence[float | None]]
    weight: float = 1.0
    """In a sum of several; what the reward itself gives is not multiplied."""

    def check(self, prompts: Sequence[str | Sequence[Mapping]]) -> None:
        """Raises ValueError where the function has a `check` of its own that refuses the prompts."""
        if hasattr(self.function, "check"):
            self.function.check(prompts)

    def __call__(self, completions: Completions) -> list[float | None]:
        """Returns the reward of each completion; None where the reward does not apply.

        Raises:
          ValueError: the function returned another count, or what is no finite number.
        """
        found, expected = self.function(completions), len(completions.completions)
        if isinstance(found, (str, bytes, Mapping)) or not hasattr(found, "__len__"):
            raise ValueError(
                f"reward {self.name}: expected a list of {expected} numbers, found {found!r:.60}"
            )
        if len(found) != expected:
            raise ValueError(f"reward {self.name}: expected {expected} numbers, found {len(found)}")
        return [self._checked(value, position) for position, value in enumerate(found)]

    def _checked(self, value: object, position: int) -> float | None:
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        found = " ".join(f"{value!r:.60}".split())
        raise ValueError(
            f"reward {self.name}: expected a finite number or None, found {found} for completion {position}"
        )


def parse_rewards(text: str) -> tuple[Reward, ...]:
    """Returns the rewards that `text` lists between commas; files and modules are read now.

    Raises:
      ValueError: an unknown name, a broken specification, or one written twice.
    """
    rewards: dict[str, Reward] = {}
    for spec in (part.strip() for part in text.split(",")):
        if not spec:
            raise ValueError(
                f"--reward: a reward is missing in {text!r}; a comma inside one is written \\x2c"
            )
        if spec in rewards:
            raise ValueError(f"--reward: {spec} is listed twice")
        name, _, argument = spec.partition(":")
        if name not in KNOWN:
            raise ValueError(
                f"--reward: unknown reward {spec!r}; known: {', '.join(form for _, form in KNOWN.values())}"
            )
        make, _ = KNOWN[name]
        rewards[spec] = Reward(spec, make(argument, spec))
    return tuple(rewards.values())


def weigh_rewards(rewards: Sequence[Reward], weights: str | None) -> tuple[Reward, ...]:
    """Returns rewards with the weights in their sum that `weights` lists between commas; 1 each without it.

    Raises:
      ValueError: another count than that of the rewards, or what is no finite number.
    """
    if weights is None:
        return tuple(rewards)
    try:
        numbers = [float(part) for part in weights.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(rewards) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"--reward-weights: expected a number for each of {len(rewards)} rewards, found {weights!r}"
        )
    return tuple(replace(reward, weight=number) for reward, number in zip(rewards, numbers, strict=True))


def short_names(rewards: Sequence[Reward]) -> list[str]:
    """Returns the rewards' names, paths cut to their last part unless two rewards would have one name.

    >>> short_names([Reward("model:runs/judge", len), Reward("length:1:9", len)])
    ['model:judge', 'length:1:9']
    """
    short = [re.sub("^(model|lexicon):.*/(?=.)", r"\1:", reward.name) for reward in rewards]
    return short if len(set(short)) == len(short) else [reward.name for reward in rewards]


def user_function(argument: str, spec: str) -> Callable[[Completions], Sequence[float | None]]:
    """Returns `python:module:function`, called as `f(prompts=…, completions=…, **columns)` like TRL's.

    `completion_ids` come along too, as in TRL. A function without `**kwargs` gets what it names.
    """
    function = _imported(argument, spec)
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}

    def reward(completions: Completions) -> object:  # whatever the user gives: `Reward` looks at it
        offered = {
            **{name: list(values) for name, values in completions.columns.items()},
            "prompts": list(completions.prompts),
            "completions": list(completions.completions),
        }
        if "completion_ids" in names or completions.tokens is not None:
            offered.setdefault("completion_ids", list(map(list, completions.known_tokens())))
        arguments = {name: value for name, value in offered.items() if takes_all or name in names}
        try:
            found = function(**arguments)
            return (
                list(found)
                if isinstance(found, Iterable) and not isinstance(found, (str, Mapping))
                else found
            )
        except Exception as error:
            raise ValueError(f"reward {spec}: {_described(error)}") from error

    return reward


def _imported(argument: str, spec: str) -> Callable:
    module_name, _, name = argument.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise ValueError(f"--reward: expected python:module:function, found {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # As `python -m` does.
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"--reward: {spec}: {_described(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"--reward: {spec}: the module {module_name} has no function {name}")
    return function


def _described(error: Exception) -> str:
    """Returns an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def reward_model(argument: str, spec: str) -> Callable[[Completions], Sequence[float]]:
    """Returns `model:DIR`: what a reward model says of prompt and completion together."""
    # Named, not imported: rewards are read where there is no JAX.
    return importlib.import_module("dera_jax.reward_models").make(argument, spec)


KNOWN = {
    "length": (length, "length:MIN:MAX[:STOP]"),
    "lexicon": (lexicon, "lexicon:FILE"),
    "keywords": (keywords, "keywords:a|b"),
    "slots": (slots, "slots"),
    "model": (reward_model, "model:DIR"),
    "python": (user_function, "python:module:function"),
}
"""First word of a specification -> what makes its function from (the rest, the whole); how it is written."""
