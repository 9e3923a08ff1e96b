"""Several processes in one run: who takes what, and what they tell each other.

What is told goes through the service that the processes met at, not through the devices: any text, with
waits of any length, and nothing to compile.
"""

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
from jax._src import distributed

from dera_jax.common.json_files import decode_json, encode_json
from dera_jax.devices.mesh import Group

T = TypeVar("T")
_numbers = itertools.count()
"""Of the exchanges, which all processes make in the same order."""


def several() -> bool:
    """Returns whether this is one of several processes."""
    return jax.process_count() > 1


def leads() -> bool:
    """Returns whether this process is the one that speaks for all: the first, or the only one."""
    return jax.process_index() == 0


def in_lockstep(group: Group | None) -> bool:
    """Returns whether a group has several processes, which then have to take every step together."""
    return group is not None and len({device.process_index for device in group.mesh.devices.flat}) > 1


def stop_after(step: int) -> bool:
    """Returns whether all processes are to stop after this step: one of them has been asked to (SIGTERM).

    To be asked at every step, whose numbers grow; all hear it at the same one.
    """
    manager = distributed.global_state.preemption_sync_manager
    return manager is not None and manager.reached_sync_point(step)


def share(
    items: Sequence[T], key: Callable[[T], Hashable], number: int, count: int, slack: float = 0.25
) -> list[T]:
    """Returns the items that group `number` of `count` takes; together the groups take each one once.

    Neighbours with one key stay together, unless a group would then have more than its part by `slack`:
    then each has an equal run of the items.

    >>> [share("aaabbccd", str, number, 2) for number in range(2)]
    [['a', 'a', 'a', 'd'], ['b', 'b', 'c', 'c']]
    >>> [share("aaabbb", str, number, 3) for number in range(3)]
    [['a', 'a'], ['a', 'b'], ['b', 'b']]
    """
    shares: list[list[T]] = [[] for _ in range(count)]
    blocks = [list(block) for _, block in itertools.groupby(items, key)]
    for block in sorted(blocks, key=len, reverse=True):
        min(shares, key=len).extend(block)
    if max(map(len, shares)) > (1 + slack) * len(items) / count:
        return list(items[len(items) * number // count : len(items) * (number + 1) // count])
    return shares[number]


def exchange(value: Any) -> list:
    """Returns what each process gives, JSON, in their order; waits until all have given theirs.

    Raises:
      ValueError: the processes have not met.
    """
    if jax.process_count() == 1:
        return [value]
    client, place, pause = distributed.global_state.client, f"dera_jax/{next(_numbers)}/", 0.01
    if client is None:  # a TPU pod's processes see each other's devices without it
        raise ValueError(
            f"one of {jax.process_count()} processes: expected --coordinator=auto or its address"
        )
    client.key_value_set(f"{place}{jax.process_index()}", encode_json(value).decode())
    while len(told := client.key_value_dir_get(place)) < jax.process_count():
        # Short waits, so that an interruption is noticed.
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)
    found = {int(name.removeprefix(place)): text for name, text in told}
    return [decode_json(found[process].encode()) for process in range(jax.process_count())]


def from_first(act: Callable[[], T]) -> T:
    """Returns what `act` returns in the first process, JSON, in all of them; if it fails there, all fail.

    What a folder holds may look otherwise to each, while another one is at work in it.

    Raises:
      ValueError: `process 0: …`, what went wrong there.
    """
    found, *_ = exchange(together(lambda: act() if leads() else None))
    return found


def tell_failure(error: Exception) -> None:
    """Lets the other processes fail where they next meet; returns when they have got there."""
    exchange(" ".join(str(error).split()) or type(error).__name__)


def together(act: Callable[[], T]) -> T:
    """Returns what `act` returns here, once it has ended in all processes; if it fails in one, all fail.

    Raises:
      ValueError: `process 3: …`, what went wrong in another process.
    """
    try:
        value = act()
    except Exception as error:
        tell_failure(error)
        raise
    for process, failure in enumerate(exchange(None)):
        if failure is not None:
            raise ValueError(f"process {process}: {failure}")
    return value
