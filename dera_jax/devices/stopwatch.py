"""Seconds of work, those of the compiler apart."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax.monitoring

Item = TypeVar("Item")


class Stopwatch:
    """Adds up the seconds that work takes, without those in which JAX traces and compiles.

    Attributes:
      seconds: so far.
    """

    def __init__(self):
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time within."""
        compiling: list[float] = []

        def listen(event: str, seconds: float, **_) -> None:
            if event.startswith("/jax/core/compile/"):
                compiling.append(seconds)

        jax.monitoring.register_event_duration_secs_listener(listen)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start - sum(compiling)
            jax.monitoring.unregister_event_duration_listener(listen)

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, counting the time that they take to come and not what is done with them."""
        iterator, end = iter(items), object()
        while True:
            with self.running():
                item = next(iterator, end)
            if item is end:
                return
            yield item
