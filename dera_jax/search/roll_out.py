"""The loop on the device of a search: rows keep what was chosen of the last roll-out, and are rolled out again.

A roll-out only reads a row's caches; what it adds is kept beside them (`RollOut.recent`). When the host has chosen,
each row takes the first tokens of the row that was chosen for it, and only those enter its caches. So nothing is cut
back, windows of any size work, and rows that go on from one choice copy a few tokens, not their caches.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from dera_jax import models
from dera_jax.decoding.device_loop import Drawn, draw_token, forward_step
from dera_jax.decoding.row_sampling import RowSampling
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.state import DecodeState, advanced, on_mesh
from dera_jax.devices import placement
from dera_jax.rules.rule import Rule


class RollOut(NamedTuple):
    """What the last roll-out added to the rows of a state, none of which is in it."""

    recent: tuple[models.Recent, ...]
    """Of each model."""
    rule_state: PyTree
    """Of the rule behind the tokens that may be kept."""


class Kept(NamedTuple):
    """What each row keeps of the last roll-out."""

    sources: Int[Array, " rows"]
    """The row that it takes it from, on the same device; its caches hold the same tokens."""
    count: Int[Array, " rows"]
    """Tokens: all that may be kept, or 0."""
    token: Int[Array, " rows"]
    """The last of them."""

    @classmethod
    def nothing(cls, rows: int) -> "Kept":
        """Returns what rows that have had no roll-out keep."""
        return cls(np.arange(rows, dtype=np.int32), *np.zeros((2, rows), np.int32))


def no_roll_out(state: DecodeState, steps: int) -> RollOut:
    """Returns the roll-out, of so many steps, of rows that have had none."""
    # Copies: state and roll-out are both given up to the next one.
    recent = tuple(models.no_recent(cache, steps) for cache in state.caches)
    return RollOut(recent, jax.tree.map(jnp.copy, state.rule_state))


# Static: configs, rule, steps, emitted, ranked, mesh. Traced: everything else. One compilation for a search.
@partial(
    jax.jit,
    static_argnames=("configs", "rule", "steps", "emitted", "ranked", "mesh"),
    donate_argnames=("state", "last"),
)
def roll_out(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    last: RollOut,
    kept: Kept,
    ranks: Int[Array, " rows"],
    sampling: Sampling | RowSampling,
    eos: Int[Array, " ids"],
    *,
    rule: Rule,
    steps: int,
    emitted: int,
    ranked: int,
    mesh: Mesh | None = None,
) -> tuple[DecodeState, RollOut, Drawn]:
    """Returns the state with what is kept of the last roll-out, the next one, and its tokens [steps, rows].

    Args:
      ranks: of each row's first token among the most probable ones, from 0; the others are drawn.
      steps: tokens of a roll-out.
      emitted: tokens of it that may be kept, at most `steps`.
      ranked: how many ranks there are; 0: first tokens are drawn too.
    """
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]
    state = on_mesh(keep(configs, state, last, kept, emitted, mesh), mesh)

    def step(carry, number):
        after, recent, behind = carry
        after = after._replace(caches=state.caches)
        logits, recent = forward_step(bound, after, recent)
        first = (number == 0, ranks, ranked) if ranked else None
        drawn, rule_state = draw_token(
            logits, after, sampling, rule, partial(_ranked, first) if first else None
        )
        after = advanced(after, drawn.token, eos)._replace(rule_state=rule_state, caches=())
        behind = jax.tree.map(lambda old, new: jnp.where(number < emitted, new, old), behind, rule_state)
        return (after, recent, behind), drawn

    empty = no_roll_out(state, steps)
    carry = state._replace(caches=()), empty.recent, state.rule_state
    (_, recent, behind), drawn = jax.lax.scan(step, carry, jnp.arange(steps))
    behind = placement.constrain_rows(behind, mesh)
    return state, RollOut(recent, behind), placement.gathered(drawn, mesh)


def keep(
    configs: Sequence[models.ModelConfig],
    state: DecodeState,
    last: RollOut,
    kept: Kept,
    emitted: int,
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns the state of rows that have kept tokens of the last roll-out: each `emitted` of them, or none."""
    sources, count, token = kept
    some = count > 0
    rows = len(sources)

    def of_source(values: Array) -> Array:
        return placement.by_rows(partial(_take_rows, len(values) // rows), mesh)(values, sources)

    def with_kept(cache: Any, recent: models.Recent, config: models.ModelConfig) -> Any:
        def first(values: Array) -> Array:
            return of_source(values[:, :, :emitted])

        mine = models.Recent(
            tuple(map(first, recent.keys)),
            tuple(map(first, recent.values)),
            jnp.repeat(count, config.members),
        )
        return models.store_recent(cache, mine)

    def state_of_source(old: Array, new: Array) -> Array:
        return jnp.where(some.reshape(-1, *[1] * (old.ndim - 1)), of_source(new), old)

    return state._replace(
        caches=tuple(map(with_kept, state.caches, last.recent, configs)),
        token=jnp.where(some, token, state.token),
        position=state.position + count,
        drawn=state.drawn + count,
        rule_state=jax.tree.map(state_of_source, state.rule_state, last.rule_state),
    )


def _take_rows(
    members: int,
    first: Int[Array, ""],
    rows: Shaped[Array, "part ..."],
    sources: Int[Array, " rows"],
) -> Shaped[Array, "part ..."]:
    """Returns a part of a batch, from its row `first` on, each row as its source is, which lies in the part."""
    part = len(rows) // members
    own = jax.lax.dynamic_slice_in_dim(sources, first // members, part) - first // members
    places = own[:, None] * members + jnp.arange(members)
    return rows[places.ravel()]


def _ranked(
    first: tuple[Bool[Array, ""], Int[Array, " rows"], int], mixed: Array, drawn: Array
) -> Int[Array, " rows"]:
    """Returns each row's token: the one of its rank where this is a first step, else what was drawn."""
    here, ranks, ranked = first

    def of_rank() -> Array:
        # Behind a barrier: where only one of them is used, the compiler would sort the vocabulary.
        best = jax.lax.optimization_barrier(jax.lax.top_k(mixed, ranked)[1])
        own = jnp.take_along_axis(best, jnp.maximum(ranks, 0)[:, None], axis=1)[:, 0]
        return jnp.where(ranks >= 0, own, drawn).astype(drawn.dtype)

    return jax.lax.cond(here, of_rank, lambda: drawn)
