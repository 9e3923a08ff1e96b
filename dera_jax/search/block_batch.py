"""A running batch whose rows are candidates of searches: rolled out together, chosen among, and gone on with.

A request has a group of rows, on one device. Its rows go on from one or several branches (what has been kept so far),
several rows from each. Every chunk is a roll-out of all rows; the search then says which candidates are kept, and the
rows of a group go on from those.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from dera_jax.common.shown import shown
from dera_jax.data.encoding import before
from dera_jax.decoding import branches, device_loop
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.finished import completion_of
from dera_jax.decoding.request import Completion, Request, Searched, Shape
from dera_jax.decoding.row_sampling import RowSampling
from dera_jax.decoding.sampling import Sampling
from dera_jax.devices.mesh import mesh_of
from dera_jax.devices.usage import Usage
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule, named
from dera_jax.search.candidates import Candidate
from dera_jax.search.draws import MOST
from dera_jax.search.groups import Branch, Choosing, Group, Place
from dera_jax.search.roll_out import Kept, no_roll_out, roll_out
from dera_jax.search.traces import decision, new_text


class BlockBatch(Batch):
    """Rows in groups, one for each request."""

    slots: list[Place | None]  # type: ignore[assignment]

    def __init__(
        self,
        policies: Sequence[Policy],
        shape: Shape,
        config: DecodeConfig,
        rows: int,
        rule: Rule = linear_rule,
        usage: Usage | None = None,
        *,
        search: Choosing,
    ):
        """Starts without requests.

        Args:
          rows: of the batch; there are at least those of one request on every device.

        Raises:
          ValueError: a roll-out beyond a model's context, more first tokens than there are
            words, or a rule whose state has not a row for each row.
        """
        self.chunk = search.steps
        mesh = mesh_of(policies[0].params)
        parts = mesh.shape["data"] if mesh else 1
        super().__init__(policies, shape, config, max(rows, search.width * parts), rule, usage)
        self.search = search
        self.part_rows = self.rows // parts
        self._check()
        if search.ranked:
            self.sampling = Sampling(greedy=True, shards=self.sampling.shards)
        self.decode = partial(policies[-1].tokenizer.decode, skip_special_tokens=True)
        self.last = None
        self.kept = Kept.nothing(self.rows)

    def _check(self) -> None:
        width, steps = self.search.width, self.search.steps
        for policy in self.policies:
            if steps > policy.config.max_positions:
                raise ValueError(
                    f"draw: a roll-out of {steps} tokens does not fit the context of {policy.config.max_positions} "
                    f"tokens of {shown(policy.name, 200)}"
                )
            if self.search.ranked and width > policy.config.vocab_size:
                raise ValueError(
                    f"draw: expected at most {policy.config.vocab_size} first tokens, the words of "
                    f"{shown(policy.name, 200)}, got {width}"
                )
        if initial := getattr(self.rule, "initial_state", None):
            state = jax.eval_shape(lambda: initial(self.rows))
            if any(a.ndim < 1 or a.shape[0] != self.rows for a in jax.tree.leaves(state)):
                raise ValueError(
                    f"rule {named(self.rule).name}: expected a state with a row for each row, so that a search can "
                    f"copy it, found shapes {[a.shape for a in jax.tree.leaves(state)]}"
                )

    def _sampling(self) -> Sampling | RowSampling:
        return self.sampling if self.search.ranked else super()._sampling()

    def _stop_work(self, request: Request) -> bool:
        for group in self._groups():
            if group.request is request:
                self._free(group)
                return True
        return False

    def _groups(self) -> list[Group]:
        found = {id(slot.group): slot.group for slot in self.slots if slot}
        return list(found.values())

    def _free(self, group: Group, places: Iterable[int] | None = None) -> None:
        """Gives rows of a group, by default all, to the requests that wait."""
        for place in range(len(group.rows)) if places is None else places:
            if (row := group.rows[place]) is not None:
                self.slots[row], self.kept.count[row], group.rows[place] = None, 0, None

    def fill(self) -> None:
        """Gives rows to waiting requests, as many as each takes."""
        if self.state is None and self.queue:
            self._start()
            self.last = no_roll_out(self.state, self.search.steps)
        filled = []
        while self.queue and (rows := self._free_rows()):
            request = self.queue.popleft()
            group = self._group(request, rows)
            first = request.attempt * MOST
            for number, row in enumerate(rows):
                place = Place(group, number, replace(request, attempt=first + number))
                self.slots[row] = place
                filled.append((row, place.request))
        self.fit_caches(self._needed_room())
        self._fill_slots(filled)

    def _group(self, request: Request, rows: list[int | None]) -> Group:
        return Group(request, self.endings_of(request), rows, [Branch()] * len(rows))

    def _free_rows(self) -> list[int]:
        """Returns free rows of one device for another request; none if there are not enough."""
        for first in range(0, self.rows, self.part_rows):
            free = [row for row in range(first, first + self.part_rows) if self.slots[row] is None]
            if len(free) >= self.search.width:
                return free[: self.search.width]
        return []

    def run_chunk(self) -> device_loop.Drawn:
        search = self.search
        ranks = np.array([self._rank(slot) for slot in self.slots], np.int32)
        self.state, self.last, drawn = roll_out(
            self.configs, self.params, self.state, self.last, self.kept, ranks, self._sampling(), self.eos,
            rule=self.rule, steps=search.steps, emitted=search.emitted,
            ranked=search.width if search.ranked else 0, mesh=self.mesh,
        )  # fmt: skip
        self.kept = Kept.nothing(self.rows)
        self.usage.slot_steps += self.rows * search.steps
        return jax.device_get(drawn)

    def _rank(self, slot: Place | None) -> int:
        """Returns which of its branch's most probable tokens a row begins with."""
        if slot is None:
            return 0
        # At first all rows go on from the prompt.
        return slot.number % self.search.children if slot.group.decisions else slot.number

    def _take_finished(self, drawn: device_loop.Drawn) -> Iterator[Completion]:
        groups = self._groups()
        found = [self._candidates(group, drawn) for group in groups]
        new = [each for candidates in found for each in candidates]
        # In one call for all requests; what has ended keeps its score.
        for candidate, parts in zip(new, self.search.score_all(new, self.decode).T, strict=True):
            candidate.parts = parts
        copies: dict[int, int] = {}
        done = []
        for group, candidates in zip(groups, found, strict=True):
            if completion := self._decide(group, [*group.ended, *candidates], copies):
                self._free(group)
                self.usage.tokens += len(completion.tokens)
                self.usage.row_tokens += group.passes
                done.append(completion)
        # Before anybody sees a completion, and may leave the rest.
        self._copy(copies)
        yield from done

    def _candidates(self, group: Group, drawn: device_loop.Drawn) -> list[Candidate]:
        """Returns the roll-outs of a group's rows."""
        found = []
        for number, row in enumerate(group.rows):
            branch = group.branches[number]
            if branch is None:
                continue
            group.passes += self.search.steps
            column = self._column(drawn, row)
            # A rule may leave fewer words than there are ranks.
            if self.search.ranked and not np.isfinite(column.record.logprob[0]) and number:
                continue
            group.candidates += 1
            found.append(self._candidate(group, row, branch, column))
            group.tokens += len(found[-1].completion.tokens) - len(branch.tokens)
        return found

    def _candidate(self, group: Group, row: int, branch: Branch, column: device_loop.Drawn) -> Candidate:
        request, searched = self.slots[row].request, len(branch.tokens)
        tokens, pieces = [*branch.tokens, *column.token.tolist()], [*branch.drawn, column]
        end = self._find_end(request, group.endings, tokens, searched)
        ended = end is not None and end.count <= searched + self.search.emitted
        end = end or group.endings.cut(before(self.policies[-1], request.prompt.tokens[-1]), tokens)
        if ended or not searched:
            self._check_finite(request, pieces, end.count)
        made = completion_of(request, tokens, pieces, end)
        return Candidate(made, ended, searched, branch.number, row, column)

    def _decide(self, group: Group, candidates: list[Candidate], copies: dict[int, int]) -> Completion | None:
        """Lets a group go on from its survivors; returns its completion if all of them have ended.

        Args:
          copies: rows whose texts are to be copied, by the row that they are copied to; is added to.
        """
        scores = np.stack([candidate.parts for candidate in candidates], axis=1)
        totals = self.search.total(scores)
        for candidate, total in zip(candidates, totals, strict=True):
            candidate.score = float(total)
        ended = np.array([candidate.ended for candidate in candidates])
        config = self._config(group.request)
        kept = self.search.survivors(scores, ended, group.request, config, group.decisions)
        if self.search.trace:
            said = partial(new_text, self.policies[-1], group.endings)
            group.trace.append(decision(candidates, kept, said))
        group.decisions += 1
        group.ended = [
            replace(candidates[n], parent=n, start=len(candidates[n].completion.tokens))
            for n in kept
            if ended[n]
        ]
        living = [(number, candidates[number]) for number in kept if not ended[number]]
        if not living:
            return self._completion(group, candidates, kept[0])
        self._go_on(group, living, copies)
        return None

    def _completion(self, group: Group, candidates: list[Candidate], winner: int) -> Completion:
        others = [each.score for number, each in enumerate(candidates) if number != winner]
        found = Searched(
            candidates=group.candidates,
            tokens=group.tokens,
            passes=group.passes,
            score=candidates[winner].score,
            runner_up=max(others, default=None),
            trace=group.trace if self.search.trace else None,
        )
        return replace(candidates[winner].completion, request=group.request, search=found)

    def _go_on(self, group: Group, living: list[tuple[int, Candidate]], copies: dict[int, int]) -> None:
        """Lets a group's rows go on from candidates, each with the rows of one part of the group."""
        size, emitted = self.search.children, self.search.emitted
        old, group.branches = group.branches, [None] * len(group.rows)
        for part, (number, candidate) in self._parts(living, len(group.rows) // size).items():
            own = self.slots[candidate.row].number
            parent, tokens = old[own], candidate.completion.tokens[: candidate.start + emitted]
            piece = jax.tree.map(lambda a: a[:emitted], candidate.drawn)
            branch = Branch(tokens, [*parent.drawn, piece], number, candidate.log_weight, candidate.ancestor)
            for place in range(part * size, (part + 1) * size):
                row = group.rows[place]
                group.branches[place] = branch
                self.kept.sources[row], self.kept.token[row] = candidate.row, tokens[-1]
                self.kept.count[row] = emitted
                if old[place] is not parent:
                    # The rows of its own part stay as they are, or another of the same parent has them.
                    copies[row] = group.rows[own - own % size]
        if self.search.shrinks:
            self._free(group, [place for place, branch in enumerate(group.branches) if branch is None])

    def _parts(self, living: list[tuple[int, Candidate]], parts: int) -> dict[int, tuple[int, Candidate]]:
        """Returns which part of its group's rows each candidate goes on with: its own, if no better one has it."""
        found: dict[int, tuple[int, Candidate]] = {}
        others = []
        for each in living:
            own = self.slots[each[1].row].number // self.search.children
            if own in found:
                others.append(each)
            else:
                found[own] = each
        free = [part for part in range(parts) if part not in found]
        return found | dict(zip(free, others, strict=False))

    def _copy(self, copies: dict[int, int]) -> None:
        """Gives rows the texts of others, which stay."""
        if copies:
            sources, slots = np.full((2, self.rows), self.rows, np.int32)
            slots[: len(copies)], sources[: len(copies)] = list(copies), list(copies.values())
            self.state = branches.copy_texts(self.state, sources, slots, mesh=self.mesh)
