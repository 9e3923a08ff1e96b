"""Rows as branches: cut back to fewer tokens, or copied to go on otherwise. Nothing of them goes through the host.

A row's tokens lie from slot 0 of its caches on, so a row with fewer of them is the same caches with fewer slots in
view. That holds while no layer's window has come round: `can_be_cut`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Shaped

from dera_jax import models
from dera_jax.decoding.state import DecodeState, on_mesh
from dera_jax.devices import placement


def can_be_cut(configs: Sequence[models.ModelConfig], taken: Sequence[int]) -> bool:
    """Whether rows lose no token that they need when they are cut back.

    Args:
      taken: slots that they take in each cache now.
    """
    windows = [[window for window in config.windows if window] for config in configs]
    return all(not own or slots <= min(own) for own, slots in zip(windows, taken, strict=True))


# Static: configs, mesh. Traced: which rows, and where to. One compilation whatever is cut.
@partial(jax.jit, static_argnames=("configs", "mesh"), donate_argnames="state")
def cut_rows(
    configs: tuple[models.ModelConfig, ...],
    state: DecodeState,
    back: Int[Array, " rows"],
    token: Int[Array, "models rows"],
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns `state` with rows as they were when they had drawn fewer tokens; their rule states stay.

    Args:
      back: tokens that each row loses; 0 leaves it as it is.
      token: of each row that loses some, the last that it keeps, not yet fed.
    """
    caches = tuple(
        _cut(cache, jnp.repeat(back, config.members))
        for cache, config in zip(state.caches, configs, strict=True)
    )
    cut = state._replace(
        caches=caches,
        token=jnp.where(back > 0, token, state.token),
        position=state.position - back,
        drawn=state.drawn - back,
        done=state.done & (back == 0),
    )
    return on_mesh(cut, mesh)


def _cut(cache, back: Int[Array, " rows"]):
    index = cache.index - back
    inside: Bool[Array, "rows slots"] = jnp.arange(cache.mask.shape[1]) < index[:, None]
    return cache._replace(mask=cache.mask & inside, index=index)


# Static: mesh. Traced: which rows. One compilation whatever is copied.
@partial(jax.jit, static_argnames="mesh", donate_argnames="state")
def copy_rows(
    state: DecodeState,
    sources: Int[Array, " rows"],
    slots: Int[Array, " rows"],
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns `state` with copies of rows in other slots of the same device; their rule states are not copied.

    Args:
      sources: row numbers, one for each of `slots`; none of them is one of `slots`.
      slots: row numbers, then the number of rows, which is no row.
    """

    copied = _with_texts(state, sources, slots, mesh)._replace(
        token=_copied_each(state.token, sources, slots, 1),
        weights=_copied_each(state.weights, sources, slots),
        key=_copied_each(state.key, sources, slots),
        done=_copied_each(state.done, sources, slots),
    )
    return on_mesh(copied, mesh)


# Static: mesh. Traced: which rows. One compilation whatever is copied.
@partial(jax.jit, static_argnames="mesh", donate_argnames="state")
def copy_texts(
    state: DecodeState,
    sources: Int[Array, " rows"],
    slots: Int[Array, " rows"],
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns `state` with what rows have read in other slots, which keep their strengths, keys and last tokens.

    Args:
      sources: as of `copy_rows`, as are `slots`.
    """
    return on_mesh(_with_texts(state, sources, slots, mesh), mesh)


def _with_texts(state: DecodeState, sources: Array, slots: Array, mesh: Mesh | None) -> DecodeState:
    """Returns `state` with what rows have read, and where they are in it, in other slots."""

    def in_place(values: Array) -> Array:
        return _copied(values, sources, slots, len(values) // len(slots), mesh)

    return state._replace(
        caches=jax.tree.map(in_place, state.caches),
        position=_copied_each(state.position, sources, slots, 1),
        drawn=_copied_each(state.drawn, sources, slots),
    )


def _copied_each(values: Array, sources: Array, slots: Array, axis: int = 0) -> Array:
    """Returns what there is one of for each row, copied to other slots."""
    at = (slice(None),) * axis
    return values.at[(*at, slots)].set(values[(*at, sources)], mode="drop")


# A function of its own, for the arrays of all layers: each shape is traced but once.
@partial(jax.jit, static_argnames=("members", "mesh"))
def _copied(values: Array, sources: Array, slots: Array, members: int, mesh: Mesh | None) -> Array:
    return placement.by_rows(partial(_copy_rows, members), mesh)(values, sources, slots)


def _copy_rows(
    members: int,
    first: Int[Array, ""],
    rows: Shaped[Array, "part ..."],
    sources: Int[Array, " rows"],
    slots: Int[Array, " rows"],
) -> Shaped[Array, "part ..."]:
    """Returns a part of a batch, from its row `first` on, with copies of rows that lie in it.

    Row by row, each in its place: a gather would copy the whole batch.
    """

    def copy(entry: Int[Array, ""], rows: Array) -> Array:
        source, place = (numbers[entry] * members - first for numbers in (sources, slots))
        here = (place >= 0) & (place < len(rows)) & (source >= 0) & (source < len(rows))
        new, old = (jax.lax.dynamic_slice_in_dim(rows, at, members) for at in (source, place))
        return jax.lax.dynamic_update_slice_in_dim(rows, jnp.where(here, new, old), place, axis=0)

    return jax.lax.fori_loop(0, jnp.sum(slots < len(slots)), copy, rows)
