"""A running batch whose rows carry all strengths that have drawn the same tokens so far.

Requests of one prompt and sample, at several strengths, start as the lanes of one row, or of several where slots
would be idle. Lanes that draw another token than the leading one leave, those that drew the same together, and go on
from the beginning of that chunk: when the row has ended it is cut back to there, so that no token of a prefix is kept
twice, or a copy of it is, where no request waits for the slot. Every chunk begins where it would if the strength were
alone, and so every figure is what it would be.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import jax
import numpy as np

from dera_jax.decoding import branches, device_loop, shared_loop
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.finished import completion_of
from dera_jax.decoding.request import Completion, Request, Shape
from dera_jax.decoding.room import CHUNK
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, dials_of, linear_rule, row_weights

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
    place: int = 0
    """On the device, in the chunk at work."""


@dataclass
class _Branch:
    """A row at work: lanes that have drawn the same tokens."""

    request: Request
    """One of them; of the others the strength alone is another."""
    lanes: list[_Lane]
    """None of them: the row has ended, and waits to be cut back."""
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    """That the device has taken: tokens in the row's caches behind the prompt's."""
    left: list[tuple[int, list[_Lane]]] = field(default_factory=list)
    """Lanes that drew alike but not as the row, by the number of tokens where that chunk began, which rises."""

    @property
    def leader(self) -> _Lane:
        """The lane whose tokens are the row's: with neighbours on both sides."""
        return self.lanes[len(self.lanes) // 2]


class SharedBatch(Batch):
    """Slots whose rows carry several strengths."""

    slots: list[_Branch | None]  # type: ignore[assignment]

    def __init__(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        *,
        strengths: int,
    ):
        """Starts without requests.

        Args:
          strengths: that a row is to carry; more of them take several rows.
        """
        super().__init__(policies, shape, config, rows, rule, usage)
        self.parts = self.mesh.shape["data"] if self.mesh else 1
        self.part_rows = self.rows // self.parts
        self.part_lanes = self.part_rows * min(1 << (strengths - 1).bit_length(), MOST_LANES)
        self.initial_state = getattr(rule, "initial_state", None)
        self.rule_state: list[np.ndarray] = []
        """Arrays of the rule's state behind the last chunk, by place."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Lets requests wait, those that may share a row behind one another; see `Batch.submit`.

        Raises:
          ValueError: one that brings its own settings.
        """
        if any(request.config for request in requests):
            raise ValueError("request: expected none with settings of its own where rows are shared")
        groups: dict[tuple, list[Request]] = {}
        for request in requests:
            groups.setdefault(_what_is_shared(request), []).append(request)
        super().submit([request for group in groups.values() for request in group])

    def _stop_work(self, request: Request) -> bool:
        for number, branch in enumerate(self.slots):
            for lanes in [branch.lanes, *(left for _, left in branch.left)] if branch else ():
                kept = [lane for lane in lanes if lane.request is not request]
                if len(kept) < len(lanes):
                    lanes[:] = kept
                    self._let_go(number)
                    return True
        return False

    def _let_go(self, number: int) -> None:
        """Frees a slot that no lane is left of."""
        branch = self.slots[number]
        branch.left = [(start, lanes) for start, lanes in branch.left if lanes]
        if not branch.lanes and not branch.left:
            self.slots[number] = None

    def fill(self) -> None:
        """Gives slots to lanes that left them, to waiting requests, and to lanes that left other slots."""
        if self.state is None and self.queue:
            self._start()
        self._cut(self._go_on())
        filled = self._take_groups()
        if not self.queue:
            self._copy_branches()
        self.fit_caches(self._needed_room())
        self._fill_slots(filled)

    def _go_on(self) -> dict[int, int]:
        """Lets rows that have ended go on with the lanes that left them last; returns how far back each is cut."""
        cut: dict[int, int] = {}
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
            cut[number] = self._take_left(
                branch, len(branch.left) - 1, self._free_lanes(number) - others, branch
            )
        return cut

    def _take_left(self, source: _Branch, which: int, most: int, branch: _Branch) -> int:
        """Moves at most so many lanes that left `source` into `branch`; returns how far back its row is cut."""
        start, lanes = source.left[which]
        back = source.steps - start
        branch.lanes, rest = lanes[:most], lanes[most:]
        branch.tokens, branch.steps = source.tokens[:start], start
        source.left[which : which + 1] = [(start, rest)] if rest else []
        return back

    def _take_groups(self) -> list[tuple[int, Request]]:
        """Gives free slots to the requests that wait, those of one prompt and sample together."""
        filled = []
        rows_each = self._rows_for_each_group()
        while self.queue:
            group = list(takewhile(lambda r, first=self.queue[0]: _may_share(r, first), self.queue))
            size = -(-len(group) // rows_each)
            for start in range(0, len(group), size):
                found = next(
                    (n for n, slot in enumerate(self.slots) if not slot and self._free_lanes(n)), None
                )
                if found is None:
                    return filled
                count = min(len(group) - start, size, self._free_lanes(found))
                requests = [self.queue.popleft() for _ in range(count)]
                self.slots[found] = _Branch(requests[0], list(map(_Lane, requests)))
                filled.append((found, requests[0]))
                if count < size:
                    break
        return filled

    def _rows_for_each_group(self) -> int:
        """Returns how many rows each group of requests can have without keeping others waiting."""
        free = self.slots.count(None)
        if len(self.queue) > free * MOST_LANES:
            return 1
        return max(1, free // max(1, len({_what_is_shared(request) for request in self.queue})))

    def _copy_branches(self) -> None:
        """Gives free slots to lanes that left rows of the same device, as copies of those that are cut back."""
        copied: dict[int, int] = {}
        cut: dict[int, int] = {}
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
                copied[number], cut[number] = source, self._take_left(there, 0, free, new)
        if copied:
            sources, slots = np.full((2, self.rows), self.rows, np.int32)
            slots[: len(copied)], sources[: len(copied)] = list(copied), list(copied.values())
            self.state = branches.copy_rows(self.state, sources, slots, mesh=self.mesh)
            self._cut(cut)

    def _cut(self, cut: dict[int, int]) -> None:
        """Cuts rows back by so many tokens."""
        if not cut:
            return
        back, token = np.zeros(self.rows, np.int32), np.zeros((len(self.policies), self.rows), np.int32)
        for number, count in cut.items():
            branch = self.slots[number]
            assert branch is not None
            back[number] = count
            last = [last for _, last in branch.request.prompt.parts]
            token[:, number] = branch.tokens[-1] if branch.tokens else last
        self.state = branches.cut_rows(self.configs, self.state, back, token, mesh=self.mesh)

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
            self.configs, self.params, self.state, self._lanes(), self.sampling, self.eos, rule=self.rule,
            steps=CHUNK, mesh=self.mesh,
        )  # fmt: skip
        self.usage.slot_steps += self.rows * CHUNK
        leaves = jax.tree.leaves(jax.device_get(rule_state))
        self.rule_state = [leaf.reshape(-1, *leaf.shape[2:]) for leaf in leaves]
        return jax.device_get(drawn)

    def _lanes(self) -> shared_loop.Lanes:
        """Returns the lanes at work as the device takes them, and notes their places."""
        row = np.zeros((self.parts, self.part_lanes), np.int32)
        leader = np.zeros((self.parts, self.part_rows), np.int32)
        columns = len(self.policies) + len(dials_of(self.rule))
        weights = np.zeros((self.parts, self.part_lanes, columns), np.float32)
        state = None
        if self.initial_state:
            lanes = self.parts * self.part_lanes
            state = jax.tree.map(
                lambda a: np.repeat(np.asarray(a), lanes, axis=0).reshape(
                    self.parts, self.part_lanes, *a.shape[1:]
                ),
                self.initial_state(1),
            )
        leaves, counts = jax.tree.leaves(state), [0] * self.parts
        for number, branch in enumerate(self.slots):
            part, own = divmod(number, self.part_rows)
            for lane in branch.lanes if branch else ():
                place = counts[part]
                counts[part] += 1
                row[part, place], weights[part, place] = own, row_weights(self.rule, lane.request.lambda_)
                if lane is branch.leader:
                    leader[part, own] = place
                for leaf, value in zip(leaves, lane.state or (), strict=lane.state is not None):
                    leaf[part, place] = value
                lane.place = part * self.part_lanes + place
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
            return jax.tree.map(lambda a: a[:, lane.place], drawn)

        known, searched = branch.tokens, len(branch.tokens)
        lead = column(branch.leader).token
        branch.tokens = [*known, *lead.tolist()]
        branch.steps += CHUNK
        end = self._find_end(branch.request, self.endings, branch.tokens, searched)
        count = (end.count if end else len(branch.tokens)) - searched
        self.usage.row_tokens += count
        stayed: list[_Lane] = []
        left: dict[tuple[int, int], list[_Lane]] = {}
        for lane in branch.lanes:
            own = column(lane)
            differs = np.flatnonzero(own.token[:count] != lead[:count])
            tokens, lane_end, alike = branch.tokens, end, len(branch.tokens)
            if differs.size:
                step = int(differs[0])
                alike = searched + step
                tokens = [*known, *own.token[: step + 1].tolist()]
                lane_end = self._find_end(branch.request, self.endings, tokens, searched)
                if lane_end is None:
                    left.setdefault((step, tokens[-1]), []).append(lane)
                    continue
            lane.drawn.append(own)
            if not searched or lane_end:
                self._check_finite(lane.request, lane.drawn, lane_end.count if lane_end else len(tokens))
            if lane_end:
                kept = min(alike, lane_end.count)
                self.pool.keep_row(self.state, number, branch.request.prompt, branch.tokens, kept)
                yield completion_of(lane.request, tokens, lane.drawn, lane_end)
            else:
                lane.state = [leaf[lane.place] for leaf in self.rule_state]
                stayed.append(lane)
        # Those that drew another token, or at another step, take a row each for this chunk in any case.
        branch.left += [(searched, lanes) for lanes in left.values()]
        branch.lanes = stayed
        self._let_go(number)


def most_strengths(requests: Sequence[Request]) -> int:
    """Returns how many of the requests, at most, may share a row; 1 where that is none."""
    if any(request.config for request in requests):
        return 1
    return max(Counter(map(_what_is_shared, requests)).values(), default=1)


def _may_share(one: Request, other: Request) -> bool:
    return _what_is_shared(one) == _what_is_shared(other)


def _what_is_shared(request: Request) -> tuple:
    """Returns what requests have in common that may share a row: all but the strength."""
    return request.prompt.id, request.sample, request.turn, request.attempt, request.prompt.tokens
