"""How several processes meet in one run."""

import math
import os
import threading

import jax

from dera_jax.devices import lost

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Of the environment: what `start_processes` takes where it is given nothing."""
OPTIONS = dict(zip(VARIABLES, ("--coordinator", "--num-processes", "--process-id"), strict=True))
"""What commands call the same."""


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 60.0,
) -> None:
    """Joins this process to the others of its run, if it is told of any, before anything is computed.

    Args:
      coordinator: address of the first process, `host:port`; `auto` asks the cluster (Slurm, TPU pods)
        for all three. What is None comes from the environment (`VARIABLES`).
      num_processes: ≥ 1.
      process_id: from 0 to num_processes − 1.
      timeout: seconds in which all of them must have come.

    Raises:
      ValueError: only some of the three, or values that cannot be; the processes have not met in time.
    """
    given = zip((coordinator, num_processes, process_id), VARIABLES, strict=True)
    address, count, number = (os.environ.get(name) if value is None else value for value, name in given)
    if address is count is number is None:
        return
    if address == "auto":
        if os.environ.get(VARIABLES[0]) == "auto":  # which JAX would take for an address
            del os.environ[VARIABLES[0]]
        return _meet((), "the coordinator that the cluster (Slurm, TPU pod …) names", timeout)
    if missing := [n for n, value in zip(VARIABLES, (address, count, number), strict=True) if value is None]:
        told = ", ".join(f"{OPTIONS[name]} (or {name})" for name in missing)
        raise ValueError(
            f"processes: expected a coordinator host:port, their number and this one's; missing {told}"
        )
    host, _, port = str(address).rpartition(":")
    numbers = all(text.isascii() and text.isdigit() for text in (port, str(count), str(number)))
    if not (host and numbers and int(number) < int(count)):
        got = f"{address!r}, {count!r}, {number!r}"
        raise ValueError(
            f"processes: expected a coordinator host:port, their number N and this one's below N; got {got}"
        )
    _meet((address, int(count), int(number)), f"the coordinator {address}, {count} processes", timeout)


def _meet(arguments: tuple, where: str, timeout: float) -> None:
    """Calls `jax.distributed.initialize`, which would take down the process itself after its own time-out."""
    failures: list[Exception] = []

    def meet():
        try:
            with lost.ending_by_one_line():
                jax.distributed.initialize(*arguments, initialization_timeout=math.ceil(timeout) + 3600)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise ValueError(f"{where}: not reached by all of them within {timeout:g} s")
    if failures and not arguments and "should be defined" in str(failures[0]):
        raise ValueError(
            "--coordinator=auto: found no cluster here (Slurm, TPU pod …) that tells who the others are; give "
            f"{', '.join(OPTIONS.values())} in each process, or none of them for a single process"
        ) from failures[0]
    if failures:
        raise ValueError(f"{where}: {' '.join(str(failures[0]).split())}") from failures[0]
