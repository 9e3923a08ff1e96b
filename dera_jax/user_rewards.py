"""A user's function as a reward: called as TRL calls it, and held to one number for each completion."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import islice

from dera_jax.code_hash import code_hash
from dera_jax.completions import Completions
from dera_jax.shown import shown
from dera_jax.user_code import UserCodeError, load_function, run

NO_LISTS = str, bytes, bytearray, memoryview, Mapping, Set
"""What can be gone through and is no list of numbers."""


def user_function(argument: str, spec: str) -> Callable:
    """Returns the function that `python:module:function` names; `reward_of` makes a reward of it."""
    return load_function(argument, f"--reward: {spec}")


def reward_of(function: Callable, name: str) -> Callable[[Completions], list]:
    """Returns `function`, called as `f(prompts=…, completions=…, **columns)` like TRL's, as a reward.

    `completion_ids` come along too, as in TRL. A function without `**kwargs` gets what it names.

    Args:
      name: the reward's, for errors.
    """
    names, takes_all = _parameters(function)

    def reward(completions: Completions) -> list:
        offered = {
            **{name: list(values) for name, values in completions.columns.items()},
            "prompts": list(completions.prompts),
            "completions": list(completions.completions),
        }
        if "completion_ids" in names or completions.tokens is not None:
            offered.setdefault("completion_ids", list(map(list, completions.known_tokens())))
        arguments = {key: value for key, value in offered.items() if takes_all or key in names}
        count = len(completions.completions)
        return run(f"reward {name}", lambda: taken(function(**arguments), count, name))

    reward.fingerprint = code_hash(function)
    return reward


def _parameters(function: Callable) -> tuple[set[str], bool]:
    """Returns the names that a function takes, and whether it takes any other."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return set(), True
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def taken(found: object, count: int, name: str) -> list:
    """Returns the `count` values of what a reward gave; of an endless iterator no more are asked for.

    Raises:
      UserCodeError: it is no list, or has another count.
    """
    if inspect.iscoroutine(found):
        found.close()
        raise UserCodeError(f"reward {name}: expected a list of {count} numbers, found an async function")
    if isinstance(found, NO_LISTS) or not isinstance(found, Iterable):
        raise UserCodeError(f"reward {name}: expected a list of {count} numbers, found {repr_of(found)}")
    values = list(islice(iter(found), count + 1))
    if len(values) != count:
        told = len(values) if len(values) < count else len(found) if hasattr(found, "__len__") else "more"
        raise UserCodeError(f"reward {name}: expected {count} numbers, found {told}")
    return values


def repr_of(value: object) -> str:
    """Returns what a value looks like, on one short line."""
    try:
        return shown(" ".join(repr(value).split()), 60)
    except Exception:  # a class of the user's
        return f"a {type(value).__name__}"
