"""Between the engine's thread and the server's loop: the events of one request's completions, as they come."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from dera_jax.decoding.request import Completion, Request
from dera_jax.serving.engine import Engine, Stopping
from dera_jax.serving.errors import ApiError
from dera_jax.serving.fair_queue import Full
from dera_jax.serving.jobs import Event, Failed, Finished, Job, Progress
from dera_jax.serving.metrics import Metrics

Result = TypeVar("Result")
RETRY = 2
"""Seconds after which a client may try again where the queue is full."""


@contextmanager
def refusing(engine: Engine) -> Iterator[None]:
    """Has what an engine does not take in the block be refused."""
    try:
        yield
    except Full:
        raise ApiError(
            f"the queue of {engine.limit} is full: try again later", 429, retry_after=RETRY
        ) from None
    except Stopping as error:
        raise ApiError(str(error), 503, retry_after=RETRY) from None


async def called(engine: Engine, function: Callable[[], Result]) -> Result:
    """Returns what a function of the models gives, called by the engine's thread; not at all once this is cancelled.

    Raises:
      ApiError: too many wait, or the server is shutting down.
    """
    with refusing(engine):
        future = engine.call(function)
    return await asyncio.wrap_future(future)


class Exchange:
    """The completions of one HTTP request: asked for at once, given up together."""

    def __init__(
        self, engine: Engine, metrics: Metrics, requests: Sequence[Request], client: str, stream: bool
    ):
        """Submits them; belongs to the running event loop.

        Raises:
          ApiError: the queue is full or shorter than they are many, or the server is shutting down.
        """
        if len(requests) > engine.limit:
            raise ApiError(
                f"expected at most {engine.limit} completions of one request, found {len(requests)}"
            )
        self.engine, self.metrics = engine, metrics
        self.begun = time.perf_counter()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def teller(number: int):
            def tell(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

            return tell

        self.jobs = [Job(each, client, teller(number), stream) for number, each in enumerate(requests)]
        self.open = set(range(len(self.jobs)))
        with refusing(engine):
            engine.submit(self.jobs)
        for prompt in {id(each.prompt): each.prompt for each in requests}.values():
            metrics.read(len(prompt.tokens[-1]))

    async def events(self) -> AsyncIterator[tuple[int, Progress | Finished]]:
        """Yields what happens to each completion, with its number; what has not ended when this is left is given up.

        Raises:
          ApiError: a completion failed.
        """
        first = set(self.open)
        try:
            while self.open:
                number, event = await self._events.get()
                seconds = time.perf_counter() - self.begun
                if isinstance(event, Failed):
                    self.open.discard(number)
                    self.metrics.failed.labels(self.metrics.model).inc()
                    raise _failure(event.error)
                if number in first:
                    first.discard(number)
                    self.metrics.first(seconds)
                if isinstance(event, Finished):
                    self.open.discard(number)
                    self.metrics.finished(event.completion, seconds)
                yield number, event
        finally:
            self.give_up()

    async def completions(self) -> list[Completion]:
        """Returns all completions, in the order of their requests."""
        found: dict[int, Completion] = {}
        async for number, event in self.events():
            if isinstance(event, Finished):
                found[number] = event.completion
        return [found[number] for number in sorted(found)]

    def give_up(self) -> None:
        """Frees the slots of what has not ended."""
        if left := [self.jobs[number] for number in sorted(self.open)]:
            self.open.clear()
            self.engine.cancel(left)
            self.metrics.cancelled.labels(self.metrics.model).inc(len(left))


def _failure(error: Exception) -> ApiError:
    """Returns what a client hears of a completion that failed: the input's fault, or ours."""
    said = " ".join(str(error).split())[:300]
    return (
        ApiError(said, 400)
        if isinstance(error, ValueError)
        else ApiError("the engine failed: see its log", 500)
    )
