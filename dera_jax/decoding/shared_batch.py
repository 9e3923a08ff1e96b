"""A running batch whose rows carry all strengths that have drawn the same tokens so far.

Requests of one prompt and sample, at several strengths, start as the lanes of one row. Where lanes draw another
token than the leading one, they leave together and go on from the beginning of that chunk, by themselves: when the
row has ended it is cut back to there, so that no token of a prefix is kept twice, or a copy of it is, where no
request waits for the slot. Every chunk begins where it would if the strength were alone, and so every figure is what
it would be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import jax
import numpy as np

from dera_jax.decoding import branches, device_loop, shared_loop
from dera_jax.decoding.batch import Batch, completion_of
from dera_jax.decoding.request import Completion, Request
from dera_jax.decoding.room import CHUNK
from dera_jax.realign import strength_weights

MOST_LANES = 16
"""For each row of the batch, at most."""


@dataclass
class _Lane:
    """A strength at work, or waiting to go on."""

    request: Request
    drawn: list[device_loop.Drawn] = field(default_factory=list)
    """Of each chunk that is behind it, this lane's column."""
    state: list[np.ndarray] | None = None
    """Of the rule, after those chunks; None: as it begins."""


@dataclass
class _Branch:
    """A row at work: lanes that have drawn the same tokens."""

    request: Request
    """One of them; of the others the strength alone is another."""
    lanes: list[_Lane]
    """None: the row has ended, and waits to be cut back."""
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    """That the device has taken: tokens in the row's caches behind the prompt's."""
    left: list[tuple[int, list[_Lane]]] = field(default_factory=list)
    """Lanes that drew otherwise, by the number of tokens at the beginning of that chunk, which rises."""

    @property
    def leader(self) -> _Lane:
        """The lane whose tokens are the row's: with neighbours on both sides."""
        return self.lanes[len(self.lanes) // 2]


class SharedBatch(Batch):
    """Slots whose rows carry several strengths. Requests must not bring their own settings."""

    slots: list[_Branch | None]

    def submit(self, requests: Sequence[Request]) -> None:
        super().submit(requests)
        assert not self.own_sampling
        self.parts = self.mesh.shape["data"] if self.mesh else 1
        self.part_rows = self.rows // self.parts
        largest = max(len(list(group)) for _, group in groupby(self.queue, key=_what_is_shared))
        self.part_lanes = self.part_rows * min(largest, MOST_LANES)
        self.initial = getattr(self.rule, "initial_state", None)
        self.places: dict[int, int] = {}
        """Of lanes on the device, by their identity."""

    def fill(self) -> None:
        """Gives slots to lanes that left them, to waiting requests, and to lanes that left other slots."""
        if self.state is None and self.queue:
            self._start()
        cut: dict[int, int] = {}
        self._go_on(cut)
        filled = self._take_groups()
        copied = {} if self.queue else self._copy_branches(cut)
        if copied:
            self.state = branches.copy_rows(self.state, *self._pairs(copied), mesh=self.mesh)
        if cut:
            self._cut(cut)
        self.fit_caches(self._needed_room())
        self._fill_slots(filled)

    def _go_on(self, cut: dict[int, int]) -> None:
        """Lets rows that have ended go on with the lanes that left them last; notes where they are cut."""
        ended = [number for number, branch in enumerate(self.slots) if branch and not branch.lanes]
        for rank, number in enumerate(ended):
            branch = self.slots[number]
            assert branch is not None
            if not self._can_be_cut(branch):
                self._start_again(branch)
                self.slots[number] = None
                continue
            # Each that has ended made room for one lane at least.
            others = sum(other // self.part_rows == number // self.part_rows for other in ended[rank + 1 :])
            self._take_left(branch, len(branch.left) - 1, self._free_lanes(number) - others, branch)
            cut[number] = len(branch.tokens)

    def _take_left(self, source: _Branch, which: int, most: int, branch: _Branch) -> None:
        """Moves at most so many lanes that left `source` into `branch`, with the tokens that they had drawn."""
        start, lanes = source.left[which]
        branch.lanes, rest = lanes[:most], lanes[most:]
        branch.tokens, branch.steps = source.tokens[:start], start
        source.left[which : which + 1] = [(start, rest)] if rest else []

    def _take_groups(self) -> list[tuple[int, Request]]:
        """Gives free slots to the requests that wait, those of one prompt and sample together."""
        filled = []
        for number, branch in enumerate(self.slots):
            free = self._free_lanes(number)
            if branch is None and self.queue and free:
                first = self.queue[0]
                lanes: list[_Lane] = []
                while (
                    self.queue
                    and len(lanes) < free
                    and _what_is_shared(self.queue[0]) == _what_is_shared(first)
                ):
                    lanes.append(_Lane(self.queue.popleft()))
                self.slots[number] = _Branch(first, lanes)
                filled.append((number, first))
        return filled

    def _copy_branches(self, cut: dict[int, int]) -> dict[int, int]:
        """Gives free slots to lanes that left rows of the same device; returns whose copy they begin as."""
        copied: dict[int, int] = {}
        for number, branch in enumerate(self.slots):
            if branch is not None or not (free := self._free_lanes(number)):
                continue
            first = number - number % self.part_rows
            sources = [
                other
                for other in range(first, first + self.part_rows)
                if (there := self.slots[other]) and there.left and other not in copied
                if self._can_be_cut(there)
            ]
            if sources:
                source = max(sources, key=lambda other: len(self.slots[other].left))
                there = self.slots[source]
                self.slots[number] = new = _Branch(there.request, [])
                self._take_left(there, 0, free, new)
                copied[number], cut[number] = source, len(new.tokens)
        return copied

    def _pairs(self, copied: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sources and the slots of copies, as the device takes them."""
        sources, slots = np.full((2, self.rows), self.rows, np.int32)
        slots[: len(copied)], sources[: len(copied)] = list(copied), list(copied.values())
        return sources, slots

    def _cut(self, cut: dict[int, int]) -> None:
        """Cuts rows back to so many tokens."""
        drawn = np.array(jax.device_get(self.state.drawn))
        token = np.zeros((len(self.policies), self.rows), np.int32)
        for number, count in cut.items():
            branch = self.slots[number]
            assert branch is not None
            drawn[number] = count
            token[:, number] = (
                branch.tokens[-1] if count else [last for _, last in branch.request.prompt.parts]
            )
        self.state = branches.cut_rows(self.configs, self.state, drawn, token, mesh=self.mesh)

    def _can_be_cut(self, branch: _Branch) -> bool:
        return branches.can_be_cut(self.configs, self._taken([branch.request.prompt], branch.steps))

    def _start_again(self, branch: _Branch) -> None:
        """Lets all lanes that left a row wait for a slot from their beginning."""
        lanes = [lane.request for _, left in branch.left for lane in left]
        self.queue.extendleft(lanes[::-1])
        branch.left = []

    def _free_lanes(self, number: int) -> int:
        """Returns how many lanes more there is room for in the part of a slot."""
        first = number - number % self.part_rows
        own = self.slots[first : first + self.part_rows]
        return self.part_lanes - sum(len(branch.lanes) for branch in own if branch)

    def run_chunk(self) -> device_loop.Drawn:
        self.state, rule_state, drawn = shared_loop.decode_shared_chunk(
            self.configs, self.params, self.state, self._lanes(), self.shared_sampling, self.eos, rule=self.rule,
            steps=CHUNK, mesh=self.mesh,
        )  # fmt: skip
        self.usage.slot_steps += self.rows * CHUNK
        leaves = [
            array.reshape(-1, *array.shape[2:]) for array in jax.tree.leaves(jax.device_get(rule_state))
        ]
        self.after = leaves
        return jax.device_get(drawn)

    def _lanes(self) -> shared_loop.Lanes:
        """Returns the lanes at work as the device takes them, and notes their places."""
        row = np.zeros((self.parts, self.part_lanes), np.int32)
        leader = np.zeros((self.parts, self.part_rows), np.int32)
        weights = np.zeros((self.parts, self.part_lanes, len(self.policies)), np.float32)
        state = None
        if self.initial:
            lanes = self.parts * self.part_lanes
            state = jax.tree.map(
                lambda a: np.array(a).reshape(self.parts, self.part_lanes, *a.shape[1:]), self.initial(lanes)
            )
        counts = [0] * self.parts
        self.places.clear()
        for number, branch in enumerate(self.slots):
            part, own = divmod(number, self.part_rows)
            for lane in branch.lanes if branch else ():
                place = counts[part]
                counts[part] += 1
                row[part, place], weights[part, place] = own, strength_weights(lane.request.lambda_)
                if lane is branch.leader:
                    leader[part, own] = place
                if lane.state is not None:
                    for leaf, value in zip(jax.tree.leaves(state), lane.state, strict=True):
                        leaf[part, place] = value
                self.places[id(lane)] = part * self.part_lanes + place
        blocks = np.int32(-(-max(counts) // self.part_rows))
        return shared_loop.Lanes(row, leader, weights, blocks, state)

    def _take_finished(self, drawn: device_loop.Drawn) -> Iterator[Completion]:
        for number, branch in enumerate(self.slots):
            if branch is not None:
                for completion in self._take_branch(number, branch, drawn):
                    self.usage.tokens += len(completion.tokens)
                    yield completion

    def _take_branch(self, number: int, branch: _Branch, drawn: device_loop.Drawn) -> Iterator[Completion]:
        """Takes a chunk of a row: what its lanes drew, those that ended and those that left."""

        def column(lane: _Lane) -> device_loop.Drawn:
            return jax.tree.map(lambda a: a[:, self.places[id(lane)]], drawn)

        known, searched = branch.tokens, len(branch.tokens)
        lead = column(branch.leader).token
        branch.tokens = [*known, *lead.tolist()]
        branch.steps += CHUNK
        end = self._find_end(branch.request, self.endings, branch.tokens, searched)
        count = (end.count if end else len(branch.tokens)) - searched
        stayed, left = [], []
        for lane in branch.lanes:
            own = column(lane)
            differs = np.flatnonzero(own.token[:count] != lead[:count])
            tokens, lane_end = branch.tokens, end
            if differs.size:
                tokens = [*known, *own.token[: differs[0] + 1].tolist()]
                lane_end = self._find_end(branch.request, self.endings, tokens, searched)
                if lane_end is None:
                    left.append(lane)
                    continue
            lane.drawn.append(own)
            if not searched or lane_end:
                self._check_finite(lane.request, lane.drawn, lane_end.count if lane_end else len(tokens))
            if lane_end:
                yield completion_of(lane.request, tokens, lane.drawn, lane_end)
            else:
                lane.state = [leaf[self.places[id(lane)]] for leaf in self.after] if self.initial else None
                stayed.append(lane)
        if left:
            branch.left.append((searched, left))
        branch.lanes = stayed
        if not stayed and not branch.left:
            self.slots[number] = None


def _what_is_shared(request: Request) -> tuple:
    """Returns what requests have in common that may share a row: all but the strength."""
    return request.prompt.id, request.sample, request.turn, request.attempt, request.prompt.tokens
