"""The one thread that owns the running batch: completions join and leave it between two chunks of steps."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.pieces import PIECE
from dera_jax.decoding.request import Shape, shape_of
from dera_jax.decoding.room import CHUNK
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule
from dera_jax.serving.fair_queue import FairQueue, Full
from dera_jax.serving.jobs import Failed, Finished, Job, Progress

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Stopping(RuntimeError):
    """The server is shutting down."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    slots: int
    busy: int
    """Slots at work, or whose prompt is being read."""
    waiting: int
    """Completions without a slot."""


class Engine:
    """Requests in, events out; every slot of the batch may have another strength, sampling, end and length."""

    def __init__(
        self,
        policies: Sequence[Policy],
        rule: Rule,
        config: DecodeConfig,
        rows: int,
        limit: int,
        draw: MixtureDraw,
        steps: int = CHUNK,
    ):
        """Starts without requests, and without its thread: see `start`.

        Args:
          rows: slots.
          limit: completions that may wait for one.
          steps: of a chunk, where nothing is drafted; a divisor of `CHUNK`.
        """
        self.policies, self.rule, self.config, self.draw = policies, rule, config, draw
        self.steps = steps
        self.rows = rows
        self.usage = Usage()
        self._queue: FairQueue[Job] = FairQueue(limit)
        self._batches: dict[Shape, Batch] = {}
        self._jobs: dict[int, Job] = {}
        """Those with a slot, by the identity of their requests."""
        self._reading: deque[Job] = deque()
        self._cancelled: deque[Job] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread, unless it runs."""
        if not self._thread.is_alive():
            self._thread.start()

    def submit(self, jobs: list[Job]) -> None:
        """Lets jobs of one client wait for slots.

        Raises:
          Full: there is no room for all of them.
          Stopping: the server shuts down.
        """
        with self._wake:
            self._check_open()
            self._queue.add(jobs[0].client, jobs)
            self._wake.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Gives up jobs at the next look; those that have ended are left alone."""
        with self._wake:
            self._cancelled.extend(jobs)
            self._wake.notify()

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Has the thread call a function of the models between two chunks, one for each chunk; cancelled ones never.

        Raises:
          Full: as many wait as completions may.
          Stopping: the server shuts down.
        """
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

        with self._wake:
            self._check_open()
            if len(self._calls) >= self.limit:
                raise Full
            self._calls.append(run)
            self._wake.notify()
        return future

    @property
    def limit(self) -> int:
        """Completions that may wait."""
        return self._queue.limit

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def load(self) -> Load:
        """Returns how busy it is."""
        with self._wake:
            return Load(self.rows, len(self._jobs) + len(self._reading), len(self._queue))

    def stop(self, timeout: float | None = None) -> None:
        """Takes nothing more, and returns when everything that was taken has ended."""
        with self._wake:
            self._open = False
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _check_open(self) -> None:
        if not self._open:
            raise Stopping("the server is shutting down")

    @property
    def _has_work(self) -> bool:
        return bool(self._queue or self._jobs or self._reading or self._calls or self._cancelled)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._has_work or not self._open)
                if not self._has_work:
                    return
                call = self._calls.popleft() if self._calls else None
                cancelled, self._cancelled = self._cancelled, deque()
            if call:
                call()
            for job in cancelled:
                self._drop(job)
            self._fill_slots()
            self._read_piece()
            for batch in list(self._batches.values()):
                if batch.busy:
                    self._guarded(batch, self._step)

    def _drop(self, job: Job) -> None:
        """Takes a job out of wherever it is."""
        with self._wake:
            if self._queue.drop(job):
                return
        if job in self._reading:
            self._reading.remove(job)
        elif self._jobs.pop(id(job.request), None):
            self._batch(job).cancel(job.request)

    def _fill_slots(self) -> None:
        """Gives free slots to those whose turn it is."""
        while len(self._jobs) + len(self._reading) < self.rows:
            with self._wake:
                if not self._queue:
                    return
                job = self._queue.take()
            self._guarded(self._batch(job), self._begin, job)

    def _begin(self, batch: Batch, job: Job) -> None:
        prompt = job.request.prompt
        encoded = any(policy.config.encoder_decoder for policy in self.policies)
        if not encoded and max(map(len, prompt.tokens)) > PIECE + 1:
            job.reading = batch.pool.read_in_pieces(prompt)
            self._reading.append(job)
        else:
            self._join(batch, job)

    def _join(self, batch: Batch, job: Job) -> None:
        self._jobs[id(job.request)] = job
        batch.submit([job.request])

    def _read_piece(self) -> None:
        """Reads one piece of one prompt; the next time it is another's turn."""
        if self._reading:
            job = self._reading.popleft()
            self._guarded(self._batch(job), self._read_on, job)

    def _read_on(self, batch: Batch, job: Job) -> None:
        assert job.reading is not None
        try:
            next(job.reading)
        except StopIteration:
            job.reading = None
            self._join(batch, job)
        else:
            self._reading.append(job)

    def _step(self, batch: Batch) -> None:
        """Takes a chunk of steps and tells of it."""
        for completion in batch.step():
            self._jobs.pop(id(completion.request)).tell(Finished(completion))
        while batch.failed:
            request, error = batch.failed.pop()
            self._jobs.pop(id(request)).tell(Failed(error))
        for slot in batch.working:
            job = self._jobs[id(slot.request)]
            if job.stream and len(slot.tokens) > job.told:
                new, job.told = slot.tokens[job.told :], len(slot.tokens)
                job.tell(Progress(new, slot.drawn[-1]))

    def _batch(self, job: Job) -> Batch:
        """Returns the batch that takes a job's request."""
        shape = shape_of(job.request)
        if shape not in self._batches:
            batch = self.draw.batch(self.policies, shape, self.config, self.rows, self.rule, self.usage)
            batch.failed = []
            # One program serves rows of any sampling, so that nothing is compiled when the first one comes.
            batch.own_sampling = True
            batch.steps = self.steps
            if self.draw.prefixes is not None:
                batch.pool.keep_prefixes(self.draw.prefixes, self.usage)
            self._batches[shape] = batch
        return self._batches[shape]

    def _guarded(self, batch: Batch, act: Callable, *given) -> None:
        """Calls `act`; where it fails, all that the batch was doing fails with it, and a new one takes its place."""
        try:
            act(batch, *given)
        except Exception as error:
            log.exception("a batch was given up")
            lost = [
                job for job in [*self._jobs.values(), *self._reading, *given] if self._batch(job) is batch
            ]
            del self._batches[batch.shape]
            for job in {id(job): job for job in lost}.values():
                self._jobs.pop(id(job.request), None)
                if job in self._reading:
                    self._reading.remove(job)
                job.tell(Failed(error))
