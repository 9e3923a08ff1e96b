"""A running batch on the host: requests in, completions out.

A request is one completion to make: a prompt, a strength, a sample. Requests wait in a queue; a batch has
a fixed number of slots; after every chunk of steps the finished rows are taken out and their slots
are given to the next requests. Prompts are prefilled when their first request's turn comes. Caches have the
room that the longest row at work needs, in few steps: a chunk is compiled for each.
"""

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, groupby

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import models
from dera_jax.data.encoding import EncodedPrompt, before
from dera_jax.decoding import device_loop, state
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.endings import End, Endings
from dera_jax.decoding.finished import NotFinite, check_finite, completion_of
from dera_jax.decoding.prefilling import PromptPool
from dera_jax.decoding.request import Completion, Request, Shape, shape_of
from dera_jax.decoding.room import CHUNK, full_room, room_for
from dera_jax.decoding.row_sampling import RowSampling
from dera_jax.decoding.sampling import Sampling
from dera_jax.devices.mesh import mesh_of, rows_for
from dera_jax.devices.usage import Usage
from dera_jax.models.keys import seed_key
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, check_strength, dials_of, linear_rule, row_weights


def _prompt_hash(request: Request) -> np.uint32:
    """Returns what the request's draws are seeded by, beside the run's seed and the sample."""
    turn = f"\0{request.turn}" if request.turn else ""
    return np.uint32(zlib.crc32(f"{request.prompt.id}{turn}".encode()))


@lru_cache(maxsize=1024)
def _seed_data(seed: int) -> np.ndarray:
    return np.asarray(jax.random.key_data(seed_key(seed)))


@dataclass
class Slot:
    """A row at work."""

    request: Request
    endings: Endings
    tokens: list[int] = field(default_factory=list)
    drawn: list[device_loop.Drawn] = field(default_factory=list)
    """Of each chunk, this row's column."""


class Batch:
    """Slots, the queue of requests that wait for one, and the state on the device."""

    chunk = CHUNK
    """Tokens that a row draws between two looks, at most."""
    steps = CHUNK
    """That a chunk has where nothing is drafted; a divisor of `CHUNK`, as caches have room for whole ones."""

    def __init__(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
    ):
        """Starts without requests.

        Args:
          shape: of all requests to come.
          config: of those that bring none of their own.
          rows: slots; rounded up to as many on every device.
          usage: is added to.
        """
        self.policies, self.shape, self.config, self.rule = policies, shape, config, rule
        self.usage = usage or Usage()
        self.configs = tuple(replace(policy.config, kv_cache=config.kv_cache) for policy in policies)
        self.params = tuple(policy.params for policy in policies)
        if shape.alike and self._reads_together():
            self.configs, self.params = models.join_adapted(self.configs, self.params)
        self.mesh = mesh_of(self.params[0])
        parts = self.mesh.shape if self.mesh else {"data": 1, "model": 1}
        # Those beyond what was asked for are filled too.
        self.rows = rows = rows_for(self.mesh, rows)
        self.queue: deque[Request] = deque()
        self.slots: list[Slot | None] = [None] * rows
        self.pool = PromptPool(self.configs, self.params, rows, parts["data"], self.mesh)
        self.sampling = Sampling.create(config.temperature, config.top_k, config.top_p, parts["model"])
        self.failed: list[tuple[Request, NotFinite]] | None = None
        """A list takes the requests whose figures are not finite, and the others go on."""
        self.own_sampling = False
        """Whether a request has brought its own; the program for such rows serves all from then on."""
        eos_ids = {i for policy in policies for i in policy.eos_ids}
        self.eos = jnp.array(sorted(eos_ids), jnp.int32)
        self.endings = Endings(policies[-1].tokenizer, eos_ids, config.stop, config.max_new_tokens)
        self.most: tuple[int, ...] = (0,) * len(self.configs)
        """Slots of caches that any request so far can need."""
        self.room: tuple[int, ...] = self.most
        self.state: state.DecodeState | None = None

    def _reads_together(self) -> bool:
        """Whether models on one base are run as one."""
        return True

    @property
    def working(self) -> list[Slot]:
        """The rows at work."""
        return [slot for slot in self.slots if slot is not None]

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self.queue)

    @property
    def busy(self) -> bool:
        """Whether a request waits or is at work."""
        return bool(self.queue) or any(self.slots)

    def submit(self, requests: Sequence[Request]) -> None:
        """Lets requests wait for slots, behind those that wait.

        Raises:
          ValueError: one of another shape, or with another kind of cache, or a strength that the rule does not take.
        """
        for request in requests:
            check_strength(self.rule, request.lambda_)
            if (shape := shape_of(request)) != self.shape:
                raise ValueError(f"request: expected one of {self.shape}, got {shape}")
            if request.config and request.config.kv_cache != self.config.kv_cache:
                raise ValueError(
                    f"request: expected kv_cache {self.config.kv_cache}, got {request.config.kv_cache}"
                )
        full = [
            full_room(taken, self._config(request).max_new_tokens, self.chunk)
            for request in requests
            for taken in self._taken([request.prompt])
        ]
        each = [full[model :: len(self.configs)] for model in range(len(self.configs))]
        self.most = tuple(max([most, *slots]) for most, slots in zip(self.most, each, strict=True))
        self.pool.fit(self.rows, self.most)
        self.own_sampling |= any(_sampling_of(self._config(r)) != _sampling_of(self.config) for r in requests)
        self.queue.extend(requests)

    def step(self) -> Iterator[Completion]:
        """Fills free slots, takes a chunk of steps, and returns the completions that have ended.

        They are to be taken before the next step.

        Raises:
          NotFinite: of a completion, unless `failed` is a list; those before it have been returned.
        """
        self.fill()
        return self._take_finished(self.run_chunk()) if any(self.slots) else iter(())

    def cancel(self, request: Request) -> bool:
        """Takes a request, the very object, out of the batch; returns whether it was there."""
        if self._stop_work(request):
            return True
        kept = [other for other in self.queue if other is not request]
        found = len(kept) < len(self.queue)
        self.queue = deque(kept)
        return found

    def _stop_work(self, request: Request) -> bool:
        """Takes a request out of its slot; returns whether it had one."""
        for number, slot in enumerate(self.slots):
            if slot is not None and slot.request is request:
                self.slots[number] = None
                return True
        return False

    def run_chunk(self) -> device_loop.Drawn:
        self.state, drawn = device_loop.decode_chunk(
            self.configs, self.params, self.state, self._sampling(), self.eos, rule=self.rule, steps=self.steps,
            mesh=self.mesh,
        )  # fmt: skip
        self.usage.slot_steps += self.rows * self.steps
        return jax.device_get(drawn)

    def fill(self) -> None:
        """Gives free slots to waiting requests, those of one prompt together (prompts of one text are two)."""
        if self.state is None and self.queue:
            self._start()
        free = [number for number, slot in enumerate(self.slots) if slot is None]
        requests = [self.queue.popleft() for _ in range(min(len(free), len(self.queue)))]
        filled = list(zip(free, requests, strict=False))
        for slot, request in filled:
            self.slots[slot] = Slot(request, self.endings_of(request))
        self.fit_caches(self._needed_room())
        self._fill_slots(filled)

    def _fill_slots(self, filled: list[tuple[int, Request]]) -> None:
        """Puts the requests' prompts into their slots."""
        by_prompt = groupby(filled, key=lambda pair: (pair[1].prompt.id, pair[1].turn, pair[1].prompt.tokens))
        groups = [list(group) for _, group in by_prompt]
        for number, group in enumerate(groups):
            self._fill_prompt(group, [each[0][1].prompt for each in groups[number + 1 :]])

    def prefill(
        self, prompt: EncodedPrompt, then: Sequence[EncodedPrompt] = ()
    ) -> tuple[state.Prefilled, int]:
        """Returns prompts, ready to be continued, and which of them is `prompt`.

        Args:
          then: whose turn comes before those of the queue.
        """
        return self.pool.prefill(prompt, chain(then, (request.prompt for request in self.queue)))

    def fit_caches(self, room: tuple[int, ...]) -> None:
        """Gives the caches so many slots."""
        if room != self.room:
            assert self.state is not None
            self.state = state.fit_caches(self.configs, self.state, room, self.mesh)
            self.room = room

    def _start(self) -> None:
        """Makes the state, with the room that the first requests need."""
        first = [request.prompt for request in list(self.queue)[: self.rows]]
        prefilled, _ = self.prefill(first[0])
        self.room = self._room_for(self._taken(first))
        key = seed_key(self.config.seed)
        self.state = state.empty_state(
            self.configs, prefilled, self.rows, self.room, key, self.rule, self.mesh
        )

    def _config(self, request: Request) -> DecodeConfig:
        return request.config or self.config

    def endings_of(self, request: Request) -> Endings:
        """Returns what ends a request's completion."""
        if request.config is None:
            return self.endings
        return self.endings.but(request.config.stop, request.config.max_new_tokens)

    def _sampling(self) -> Sampling | RowSampling:
        """Returns how the rows at work are drawn: all alike, or each as its request says."""
        if not self.own_sampling:
            return self.sampling
        return RowSampling.of([self._config(slot.request) if slot else self.config for slot in self.slots])

    def _needed_room(self) -> tuple[int, ...]:
        """Returns the slots of each cache for another chunk of the longest row, at most twice what it needs."""
        if not self.working:
            return self.room
        taken = [self._taken([slot.request.prompt], len(slot.tokens)) for slot in self.working]
        wanted = self._room_for(tuple(map(max, zip(*taken, strict=True))))
        pairs = zip(wanted, self.room, strict=True)
        return tuple(new if new > old or 2 * new <= old else old for new, old in pairs)

    def _room_for(self, taken: Sequence[int]) -> tuple[int, ...]:
        """Returns the slots of each cache, the longest row of which has `taken` so many."""
        pairs = zip(taken, self.most, strict=True)
        return tuple(min(room_for(slots + self.chunk), most) for slots, most in pairs)

    def _taken(self, prompts: Sequence[EncodedPrompt], drawn: int = 0) -> tuple[int, ...]:
        """Returns how many slots of each cache the longest of `prompts` takes with tokens drawn."""
        longest = tuple(map(max, zip(*(prompt.slots for prompt in prompts), strict=True)))
        counts = [config.members for config in self.configs]
        return tuple(max(each) + drawn for each in state.by_stream(longest, counts))

    def _fill_prompt(self, filled: list[tuple[int, Request]], then: Sequence[EncodedPrompt]) -> None:
        slots = np.full(self.rows, self.rows, np.int32)
        samples, attempts = np.zeros((2, self.rows), np.uint32)
        weights = np.zeros((self.rows, len(self.policies) + len(dials_of(self.rule))), np.float32)
        seeds = np.tile(_seed_data(self.config.seed), (self.rows, 1))
        for entry, (slot, request) in enumerate(filled):
            slots[entry], samples[entry], attempts[entry] = slot, request.sample, request.attempt
            weights[entry] = row_weights(self.rule, request.lambda_)
            seeds[entry] = _seed_data(self._config(request).seed)
        first = filled[0][1]
        entries = state.Entries(slots, weights, seeds, _prompt_hash(first), samples, attempts)
        prefilled = self.prefill(first.prompt, then)
        self.state = state.fill_slots(self.state, *prefilled, entries, rule=self.rule, mesh=self.mesh)

    def _take_finished(self, drawn: device_loop.Drawn) -> Iterator[Completion]:
        for number, slot in enumerate(self.slots):
            if slot is None:
                continue
            column = self._column(drawn, number)
            searched = len(slot.tokens)
            slot.tokens.extend(column.token.tolist())
            slot.drawn.append(column)
            try:
                completion = self._finished(slot, searched)
            except NotFinite as error:
                self.slots[number] = None
                if self.failed is None:
                    raise
                self.failed.append((slot.request, error))
                continue
            if completion:
                self.slots[number] = None
                self.pool.keep_row(
                    self.state, number, slot.request.prompt, slot.tokens, len(completion.tokens)
                )
                self.usage.tokens += len(completion.tokens)
                self.usage.row_tokens += len(completion.tokens)
                yield completion

    def _column(self, drawn: device_loop.Drawn, row: int) -> device_loop.Drawn:
        """Returns what a row has drawn in the last chunk."""
        return jax.tree.map(lambda a: a[:, row], drawn)

    def _finished(self, slot: Slot, searched: int) -> Completion | None:
        """Returns the slot's completion if it has ended; `searched` of its tokens were looked at before."""
        end = self._find_end(slot.request, slot.endings, slot.tokens, searched)
        if not searched or end:
            self._check_finite(slot.request, slot.drawn, end.count if end else len(slot.tokens))
        return end and completion_of(slot.request, slot.tokens, slot.drawn, end)

    def _find_end(self, request: Request, endings: Endings, tokens: list[int], searched: int) -> End | None:
        continued = before(self.policies[-1], request.prompt.tokens[-1])
        return endings.find(continued, tokens, searched, request.prompt.turn_ends)

    def _check_finite(self, request: Request, chunks: Sequence[device_loop.Drawn], end: int) -> None:
        check_finite(self.policies, self.rule, request, chunks, end)


def _sampling_of(config: DecodeConfig) -> tuple:
    return config.temperature, config.top_k, config.top_p
