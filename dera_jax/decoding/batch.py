"""The loop on the host: requests in, completions out.

A request is one completion to make: a prompt, a strength, a sample. Requests wait in a queue; a batch has
a fixed number of slots; after every chunk of steps the finished rows are taken out and their slots
are given to the next requests. Prompts are prefilled when their first request's turn comes. Caches have the
room that the longest row at work needs, in few steps: a chunk is compiled for each.
"""

import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import models
from dera_jax.data import buckets
from dera_jax.data.encoding import EncodedPrompt, before
from dera_jax.decoding import device_loop, state
from dera_jax.decoding.endings import Endings
from dera_jax.decoding.request import Completion, Request
from dera_jax.decoding.sampling import Sampling
from dera_jax.devices.mesh import mesh_of
from dera_jax.models.keys import seed_key
from dera_jax.realign import strength_weights
from dera_jax.rules.rule import named
from dera_jax.strengths import format_strength

CHUNK = 16
"""Steps between two looks at which rows have ended: a row idles half as many on average."""
POOL = 8
"""Prefilled prompts kept at a time, at most; they take no more than a quarter of the batch's caches."""


def _prompt_hash(request: Request) -> np.uint32:
    """Returns what the request's draws are seeded by, beside the run's seed and the sample."""
    turn = f"\0{request.turn}" if request.turn else ""
    return np.uint32(zlib.crc32(f"{request.prompt.id}{turn}".encode()))


def full_room(prompt: int, max_new_tokens: int) -> int:
    """Returns the slots of a cache in which a prompt takes `prompt` and completions are as long as may be."""
    # Whole chunks: the last one may reach beyond the longest completion.
    return models.whole_blocks(prompt + max_new_tokens + -max_new_tokens % CHUNK)


def room_for(slots: int) -> int:
    """Returns the slots of a cache that is to hold `slots`: the next of 128, 192, 256, 384, 512, 768 …"""
    whole = models.whole_blocks(1 << (slots - 1).bit_length())
    least = whole * 3 // 4
    return least if slots <= least and least % models.BLOCK == 0 else whole


@dataclass
class _Slot:
    """A row at work."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    drawn: list[device_loop.Drawn] = field(default_factory=list)
    """Of each chunk, this row's column."""


class Batch:
    """Slots, the queue of requests that wait for one, and the state on the device."""

    def __init__(self, policies, requests, config, rows, rule, usage):
        self.policies, self.config, self.rule, self.usage = policies, config, rule, usage
        self.configs = tuple(replace(policy.config, kv_cache=config.kv_cache) for policy in policies)
        self.params = tuple(policy.params for policy in policies)
        if len(set(requests[0].prompt.buckets)) == 1:  # then all models read a prompt in one shape
            self.configs, self.params = models.join_adapted(self.configs, self.params)
        self.mesh = mesh_of(self.params[0])
        parts = self.mesh.shape if self.mesh else {"data": 1, "model": 1}
        # As many on every device; those beyond what was asked for are filled too.
        self.rows = rows = rows + -rows % parts["data"]
        self.queue: deque[Request] = deque(requests)
        self.slots: list[_Slot | None] = [None] * rows
        self.together = parts["data"]
        """Prompts that are prefilled at once: as many as leave each device the program of a single one."""
        self.pool: OrderedDict[tuple, tuple[state.Prefilled, int]] = OrderedDict()
        self.key = seed_key(config.seed)
        self.sampling = Sampling.create(config.temperature, config.top_k, config.top_p, parts["model"])
        eos_ids = {i for policy in policies for i in policy.eos_ids}
        self.eos = jnp.array(sorted(eos_ids), jnp.int32)
        self.endings = Endings(policies[-1].tokenizer, eos_ids, config.stop, config.max_new_tokens)
        most = self._taken([request.prompt for request in requests])
        self.most = tuple(full_room(slots, config.max_new_tokens) for slots in most)
        first, _ = self.prefill(requests[0].prompt)
        self.room = self._room_for(self._taken([request.prompt for request in requests[:rows]]))
        self.state = state.empty_state(self.configs, first, rows, self.room, self.key, rule, self.mesh)

    def run(self) -> Iterator[Completion]:
        self.fill()
        while any(self.slots):
            yield from self._take_finished(self.run_chunk())
            self.fill()

    def run_chunk(self) -> device_loop.Drawn:
        self.state, drawn = device_loop.decode_chunk(
            self.configs, self.params, self.state, self.sampling, self.eos, rule=self.rule, steps=CHUNK,
            mesh=self.mesh,
        )  # fmt: skip
        self.usage.slot_steps += self.rows * CHUNK
        return jax.device_get(drawn)

    def fill(self) -> None:
        """Gives free slots to waiting requests, those of one prompt together (prompts of one text are two)."""
        free = [number for number, slot in enumerate(self.slots) if slot is None]
        requests = [self.queue.popleft() for _ in range(min(len(free), len(self.queue)))]
        filled = list(zip(free, requests, strict=False))
        for slot, request in filled:
            self.slots[slot] = _Slot(request)
        self.fit_caches(self._needed_room())
        by_prompt = groupby(filled, key=lambda pair: (pair[1].prompt.id, pair[1].prompt.tokens))
        groups = [list(group) for _, group in by_prompt]
        for number, group in enumerate(groups):
            self._fill_prompt(group, [each[0][1].prompt for each in groups[number + 1 :]])

    def _needed_room(self) -> tuple[int, ...]:
        """Returns the slots of each cache for another chunk of the longest row, at most twice what it needs."""
        working = [slot for slot in self.slots if slot is not None]
        if not working:
            return self.room
        taken = [self._taken([slot.request.prompt], len(slot.tokens)) for slot in working]
        wanted = self._room_for(tuple(map(max, zip(*taken, strict=True))))
        pairs = zip(wanted, self.room, strict=True)
        return tuple(new if new > old or 2 * new <= old else old for new, old in pairs)

    def fit_caches(self, room: tuple[int, ...]) -> None:
        """Gives the caches so many slots."""
        if room != self.room:
            self.state = state.fit_caches(self.configs, self.state, room, self.mesh)
            self.room = room

    def _room_for(self, taken: Sequence[int]) -> tuple[int, ...]:
        """Returns the slots of each cache, the longest row of which has `taken` so many."""
        pairs = zip(taken, self.most, strict=True)
        return tuple(min(room_for(slots + CHUNK), most) for slots, most in pairs)

    def _taken(self, prompts: Sequence[EncodedPrompt], drawn: int = 0) -> tuple[int, ...]:
        """Returns how many slots of each cache the longest of `prompts` takes with tokens drawn."""
        longest = tuple(map(max, zip(*(prompt.slots for prompt in prompts), strict=True)))
        counts = [config.members for config in self.configs]
        return tuple(max(each) + drawn for each in state.by_stream(longest, counts))

    def _fill_prompt(self, filled: list[tuple[int, Request]], then: Sequence[EncodedPrompt]) -> None:
        slots = np.full(self.rows, self.rows, np.int32)
        samples = np.zeros(self.rows, np.uint32)
        weights = np.zeros((self.rows, len(self.policies)), np.float32)
        for entry, (slot, request) in enumerate(filled):
            slots[entry], samples[entry] = slot, request.sample
            weights[entry] = strength_weights(request.lambda_)
        first = filled[0][1]
        self.state = state.fill_slots(
            self.state,
            *self.prefill(first.prompt, then),
            slots,
            weights,
            self.key,
            _prompt_hash(first),
            samples,
            rule=self.rule,
            mesh=self.mesh,
        )

    def prefill(
        self, prompt: EncodedPrompt, then: Sequence[EncodedPrompt] = ()
    ) -> tuple[state.Prefilled, int]:
        """Returns prompts, ready to be continued, and which of them is `prompt`.

        Args:
          then: whose turn comes before those of the queue.
        """
        # By what is read: later turns of a prompt differ from sample to sample.
        if prompt.tokens not in self.pool:
            prompts = self._next_prompts(prompt, then)
            prefilled = self._prefilled([*prompts, *[prompt] * (self.together - len(prompts))])
            self.pool.update({each.tokens: (prefilled, number) for number, each in enumerate(prompts)})
            most = max(self.together, min(POOL, max(1, self.rows // 4)))
            while len(self.pool) > most:
                self.pool.popitem(last=False)
        return self.pool[prompt.tokens]

    def _next_prompts(self, prompt: EncodedPrompt, then: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """Returns `prompt` and those of its buckets whose turn comes next, as many as are read together."""
        found = {prompt.tokens: prompt}
        for each in chain(then, (request.prompt for request in self.queue)):
            if len(found) == self.together:
                break
            if each.buckets == prompt.buckets and each.tokens not in self.pool:
                found.setdefault(each.tokens, each)
        return list(found.values())

    def _prefilled(self, prompts: Sequence[EncodedPrompt]) -> state.Prefilled:
        def of_model(number: int, bucket: int):
            contexts, last = zip(*(prompt.parts[number] for prompt in prompts), strict=True)
            tokens, mask = zip(*(buckets.pad_left(context, bucket) for context in contexts), strict=True)
            return np.concatenate(tokens), np.concatenate(mask), last

        read = [of_model(number, bucket) for number, bucket in enumerate(prompts[0].buckets)]
        tokens, mask, last = zip(*read, strict=True)
        prefilled = device_loop.prefill_prompts(
            self.configs, self.params, tokens, mask, np.array(last, np.int32), mesh=self.mesh
        )
        if self.mesh:  # on a processor, two computations under way may wait for each other's devices
            jax.block_until_ready(prefilled)
        return prefilled

    def _take_finished(self, drawn: device_loop.Drawn) -> Iterator[Completion]:
        for number, slot in enumerate(self.slots):
            if slot is None:
                continue
            column = jax.tree.map(lambda a, row=number: a[:, row], drawn)
            searched = len(slot.tokens)
            slot.tokens.extend(column.token.tolist())
            slot.drawn.append(column)
            if completion := self._finished(slot, searched):
                self.slots[number] = None
                self.usage.tokens += len(completion.tokens)
                yield completion

    def _finished(self, slot: _Slot, searched: int) -> Completion | None:
        """Returns the slot's completion if it has ended; `searched` of its tokens were looked at before."""
        prompt = slot.request.prompt
        continued = before(self.policies[-1], prompt.tokens[-1])
        end = self.endings.find(continued, slot.tokens, searched, prompt.turn_ends)
        if not searched or end:
            self._check_finite(slot, end.count if end else len(slot.tokens))
        if end is None:
            return None
        column = jax.tree.map(lambda *chunks: np.concatenate(chunks)[: end.count], *slot.drawn)
        record = column.record
        return Completion(
            request=slot.request,
            tokens=slot.tokens[: end.count],
            text=end.text,
            finish_reason=end.reason,
            logprobs=record.logprob,
            model_logprobs=record.model_logprobs,
            sampling_logprobs=column.sampling_logprob,
            kl_to_reference=record.kl_to_reference,
            log_normalizers=record.log_normalizer,
        )

    def _check_finite(self, slot: _Slot, end: int) -> None:
        """Raises ValueError where a model's logits, or those that the rule made of them, are not finite."""
        drawn = jax.tree.map(lambda *chunks: np.concatenate(chunks)[:end], *slot.drawn)
        mixed = np.isfinite(drawn.record.logprob) & np.isfinite(drawn.sampling_logprob)
        finite = np.column_stack([np.isfinite(drawn.record.model_logprobs), mixed])
        if finite.all():
            return
        step, column = np.argwhere(~finite)[0]
        name = (*(p.name for p in self.policies), f"rule {named(self.rule).name}")[column]
        at = f" at λ = {format_strength(slot.request.lambda_)}" if column == len(self.policies) else ""
        raise ValueError(
            f"{name}: logits are not finite at token {step + 1} of the completion of "
            f"prompt {slot.request.prompt.id!r}{at}"
        )
