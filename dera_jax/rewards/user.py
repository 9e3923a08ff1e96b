"""A user's function as a reward: called as TRL calls it, and held to one number for each completion."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from dera_jax.common.code_hash import code_hash
from dera_jax.common.shown import shown
from dera_jax.common.user_code import UserCodeError, described, load_function, run
from dera_jax.rewards.completions import Completions

NO_LISTS = str, bytes, bytearray, memoryview, Mapping, Set
"""What can be gone through and is no list of numbers."""


def user_function(argument: str, spec: str) -> Callable:
    """Returns the function that `python:module:function` names; `reward_of` makes a reward of it."""
    return load_function(argument, f"--reward: {spec}")


def reward_of(function: Callable, name: str) -> Callable[[Completions], list]:
    """Returns `function`, called as `f(prompts=…, completions=…, **columns)` like TRL's, as a reward.

    As in TRL, a chat's prompt and completion are lists of messages, `completion_ids` come along with EOS where it
    was drawn, and an async function is awaited. A function without `**kwargs` gets what it names; `trainer_state`,
    `log_extra` and `log_metric` get only those that name them, and what is logged is kept nowhere.

    Args:
      name: the reward's, for errors.
    """
    names, takes_all = _parameters(function)

    def asked(completions: Completions) -> dict:
        offered = {name: list(values) for name, values in completions.columns.items()} | {
            "prompts": [seen if isinstance(seen, str) else list(seen) for seen in completions.prompts],
            "completions": [
                _said(*each) for each in zip(completions.prompts, completions.completions, strict=True)
            ],
        }
        if "completion_ids" in names or completions.tokens is not None:
            ids = completions.whole_tokens or completions.known_tokens()
            offered.setdefault("completion_ids", list(map(list, ids)))
        arguments = {key: value for key, value in offered.items() if takes_all or key in names}
        of_training = {
            "trainer_state": TrainerState(completions.step),
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        arguments |= {key: of_training[key] for key in names & of_training.keys() if key not in arguments}
        return arguments

    def reward(completions: Completions) -> list:
        arguments, count = asked(completions), len(completions.completions)
        return run(f"reward {name}", lambda: taken(_awaited(function(**arguments)), count, name))

    async def wait(completions: Completions) -> list:
        with described(f"reward {name}"):
            return taken(await function(**asked(completions)), len(completions.completions), name)

    reward.fingerprint = code_hash(function)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        reward.wait = wait
    return reward


def wait_for_all(waits: Sequence[Callable[[], Awaitable[list]]]) -> list[list]:
    """Returns what async rewards give, which are waited for at the same time, as in TRL.

    Raises:
      UserCodeError: one of them failed; the first to fail is told.
    """

    async def all_of_them() -> list[list]:
        return list(await asyncio.gather(*(wait() for wait in waits)))

    return run("rewards", lambda: _awaited(all_of_them()))


@dataclass(frozen=True)
class TrainerState:
    """What rewards may ask of a training, by TRL's names."""

    global_step: int = 0
    """The step whose completions are judged, from 0; 0 where nothing is trained."""


def _said(prompt: str | Sequence[Mapping], completion: str) -> str | list[dict]:
    """Returns a completion as its prompt is: a text, or messages."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def _ignore(*args, **kwargs) -> None:
    pass


def _awaited(found: object) -> object:
    """Returns what an async function returns in the end."""
    if not inspect.isawaitable(found):
        return found

    async def wait() -> object:
        return await found

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # Within a notebook's loop, which cannot wait for another.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


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
