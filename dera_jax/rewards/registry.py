"""Rewards: completions to numbers, named as users write them: `length:40:60:\\n`, `keywords:tea|milk`.

A reward's name is its specification, word for word, or what stands before it: `exclaim=python:mine:f`. It is
the reward's key in rows.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dera_jax.common.shown import shown
from dera_jax.common.user_code import UserCodeError
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.concepts import concepts
from dera_jax.rewards.text import keywords, length, lexicon, slots
from dera_jax.rewards.user import repr_of, reward_of, taken, user_function


@dataclass(frozen=True)
class Reward:
    """A function of completions that is held to its promise: one finite number, or None, for each."""

    name: str
    """The specification as written, or the name that it was given."""
    function: Callable[[Completions], Sequence[float | None]]
    weight: float = 1.0
    """In a sum of several; what the reward itself gives is not multiplied."""
    largest: float | None = None
    """What it never exceeds; None where no such value is known."""

    @property
    def fingerprint(self) -> str | None:
        """Hash of the model, file or code that it reads; None where its name alone decides it."""
        return getattr(self.function, "fingerprint", None)

    def check(self, prompts: Sequence[str | Sequence[Mapping]]) -> None:
        """Raises ValueError where the function has a `check` of its own that refuses the prompts."""
        if hasattr(self.function, "check"):
            self.function.check(prompts)

    def reading_on(self) -> "Reward":
        """Returns the same reward for completions that grow; its function may remember those it has seen last."""
        if not hasattr(self.function, "reading_on"):
            return self
        return replace(self, function=self.function.reading_on())

    def __call__(self, completions: Completions) -> list[float | None]:
        """Returns the reward of each completion; None where the reward does not apply.

        Raises:
          UserCodeError: the function returned another count, or what is no finite number; or it failed.
        """
        return self.checked(self.function(completions), completions)

    def checked(self, found: object, completions: Completions) -> list[float | None]:
        """Returns what the function gave, as `__call__` does."""
        values = taken(found, len(completions.completions), self.name)
        return [self.number(value, f"completion {position}") for position, value in enumerate(values)]

    def number(self, value: object, where: str) -> float | None:
        """Returns what the function gave for one completion as a number.

        Args:
          where: the completion, for errors.

        Raises:
          UserCodeError: it is no finite number and not None.
        """
        if value is None:
            return None
        try:
            # A list of one number in a column is no number, though NumPy makes one of it.
            is_number = not isinstance(value, (str, bytes, bytearray)) and not getattr(value, "shape", ())
            number = float(value) if is_number else math.nan
        except KeyboardInterrupt:
            raise
        except BaseException:  # of a class of the user's, which may even exit
            number = math.nan
        if math.isfinite(number):
            return number
        raise UserCodeError(
            f"reward {self.name}: expected a finite number or None, found {repr_of(value)} for {where}"
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
                f"--reward: a reward is missing in {shown(text, 200)!r}; a comma inside one is written \\x2c"
            )
        name = _name(spec)
        if name in rewards:
            raise ValueError(f"--reward: {name} is listed twice")
        written = spec[len(name) + 1 :] if spec != name else spec
        rewards[name] = Reward(name, _function(written, name), largest=largest_value(written))
    return tuple(rewards.values())


def largest_value(spec: str) -> float | None:
    """Returns what a reward as it is written, `length:40:60` say, never exceeds; None where no such value is known."""
    return LARGEST.get(spec.partition(":")[0])


_NAME = re.compile("[A-Za-z0-9_.-]+")


def _name(spec: str) -> str:
    """Returns what stands before `=`, which only a name does; else the specification."""
    name, equals, _ = spec.partition("=")
    return name if equals and _NAME.fullmatch(name) else spec


def _function(spec: str, name: str) -> Callable[[Completions], Sequence[float | None]]:
    """Returns what the specification says; errors in its values tell the reward's name."""
    kind, _, argument = spec.partition(":")
    if kind not in KNOWN:
        known = ", ".join(form for _, form, _ in KNOWN.values())
        raise ValueError(f"--reward: unknown reward {shown(spec, 80)!r}; known: {known}; NAME=… names one")
    made = KNOWN[kind][0](argument, spec)
    return made if kind != "python" else reward_of(made, name)


def as_rewards(value: object) -> tuple[Reward, ...]:
    """Returns rewards from what Python code gives.

    Args:
      value: a REWARD argument such as "length:40:60", a function with TRL's signature
        (`f(prompts, completions, **columns)`), a `Reward`, a list of these, or a mapping from names to them.
        A function's name is its `__name__`.

    Raises:
      TypeError: it is something else.
      ValueError: a broken specification, or two rewards of one name.
    """
    rewards = _as_rewards(value)
    names = [reward.name for reward in rewards]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(
            f"rewards: two are named {twice!r}; a mapping names them: {{'first': …, 'second': …}}"
        )
    return rewards


def _as_rewards(value: object) -> tuple[Reward, ...]:
    if isinstance(value, Reward):
        return (value,)
    if isinstance(value, str):
        try:
            return parse_rewards(value)
        except ValueError as error:
            raise _in_python(error) from None
    if isinstance(value, Mapping):
        return tuple(_renamed(name, each) for name, each in value.items())
    if callable(value):
        name = _function_name(value)
        return (Reward(name, reward_of(value, name)),)
    if isinstance(value, (list, tuple)):
        return tuple(reward for each in value for reward in _as_rewards(each))
    raise TypeError(
        "rewards: expected text such as 'length:40:60', a function, a Reward, a list of these, or a mapping "
        f"from names to them, found {repr_of(value)}"
    )


def _in_python(error: ValueError) -> ValueError:
    """Returns a command's error in the words of the function."""
    return ValueError(str(error).replace("--reward: ", "rewards: ", 1))


def _renamed(name: object, value: object) -> Reward:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"rewards: expected a name of letters, digits and _ . -, found {repr_of(name)}")
    if callable(value) and not isinstance(value, Reward):
        return Reward(name, reward_of(value, name))
    found = _as_rewards(value)
    if len(found) != 1:
        raise ValueError(f"rewards: expected one reward of the name {name!r}, found {len(found)}")
    return replace(found[0], name=name)


def _function_name(function: Callable) -> str:
    """Returns the name of a function, of what a partial one completes, or of an object's class."""
    function = getattr(function, "func", function)
    return getattr(function, "__name__", type(function).__name__).strip("<>")


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


def reward_model(argument: str, spec: str) -> Callable[[Completions], Sequence[float]]:
    """Returns `model:DIR`: what a reward model says of prompt and completion together."""
    # Named, not imported: rewards are read where there is no JAX.
    return importlib.import_module("dera_jax.rewards.model").make(argument, spec)


KNOWN = {
    "length": (length, "length:MIN:MAX[:STOP]", "0 if it ended with MIN to MAX tokens before STOP, else −1"),
    "lexicon": (lexicon, "lexicon:FILE", "mean rating of its words, FILE as VADER's"),
    "keywords": (keywords, "keywords:a|b", "share that occur"),
    "concepts": (concepts, "concepts", "share of a prompt's words that occur in any form"),
    "slots": (slots, "slots", "share of a meaning representation that is said"),
    "model": (reward_model, "model:DIR", "a reward model"),
    "python": (user_function, "python:module:function", "your own, with TRL's signature"),
}
"""First word of a specification -> what makes its function from (the rest, the whole); its form; what it is."""
LARGEST = {"length": 0.0, "slots": 1.0, "keywords": 1.0, "concepts": 1.0}
"""First word of a specification -> what its reward never exceeds, where there is such a value."""
HELP = ", ".join(f"{form} ({what})" for _, form, what in KNOWN.values()) + "; NAME=REWARD names one"
"""How rewards are written, for --help."""
