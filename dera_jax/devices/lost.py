"""How a process ends that has lost the others of its run: by one line and exit code 2, where JAX would abort.

The service that processes met at notices that one is gone: at once if that was the first one, else when its
heartbeats have been missed for a while. JAX then ends this process from a thread of its own, in C++, with
a stack; some lines of the service's own remain before ours.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from jax._src import distributed
from jax.errors import JaxRuntimeError

LINE = (
    "error: another process of this run is gone, or the connection to it; what is on disk is kept, the same "
    "command, started in all processes, goes on from there\n"
)


def _end(*_) -> None:
    os.write(2, LINE.encode())
    os._exit(2)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
"""Kept for as long as the process lives, as C calls it."""


@contextmanager
def ending_by_one_line() -> Iterator[None]:
    """Has the client that processes meet by, where it is made inside, end this one by `LINE`."""
    library, make = distributed._jax, distributed._jax.get_distributed_runtime_client
    # With a callback it tells no stack. Calling it fails (the status has no type in Python), and aborts.
    library.get_distributed_runtime_client = partial(make, missed_heartbeat_callback=_end)
    try:
        yield
    finally:
        library.get_distributed_runtime_client = make
    ctypes.CDLL(None).signal(signal.SIGABRT, _HANDLER)


@contextmanager
def telling_of_loss(kept: str) -> Iterator[None]:
    """Tells of a step that failed as one with others would.

    Args:
      kept: what the user has, and is to do.

    Raises:
      ValueError: where JAX could not take a step, but for want of memory.
    """
    try:
        yield
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        told = " ".join(str(error).split())
        raise ValueError(
            f"a step with other processes failed, one of them may be gone; {kept} ({told:.150})"
        ) from error
