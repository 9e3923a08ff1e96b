"""The state of a running batch: rows that are empty, filled with a prompt, or given other caches."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt32

from dera_jax import models
from dera_jax.devices import placement
from dera_jax.rules.rule import Rule, dials_of


class Prefilled(NamedTuple):
    """Prompts, ready to be continued: all but their last tokens are in the caches."""

    caches: tuple[Any, ...]
    """Of each model, a row for each prompt; members of one have rows side by side."""
    token: Int[Array, "models prompts"]
    position: Int[Array, "models prompts"]


class DecodeState(NamedTuple):
    """The carry of the scan."""

    caches: tuple[Any, ...]
    """Of each model; members of one have rows side by side."""
    token: Int[Array, "models rows"]
    """Last token of each row, not yet fed: the prompt's own, then the one drawn for all models."""
    position: Int[Array, "models rows"]
    """Of `token`, counted without padding."""
    weights: Float[Array, "rows models_and_dials"]
    """Strength of each row, as weights of the models, and behind them the rule's dials."""
    key: Key[Array, " rows"]
    """Of the row's prompt and sample; the number of tokens drawn is folded in, the strength is not."""
    drawn: Int[Array, " rows"]
    """Tokens drawn so far."""
    done: Bool[Array, " rows"]
    """Whether the row has ended or was never filled."""
    rule_state: PyTree


def advanced(state: DecodeState, token: Int[Array, " rows"], eos: Int[Array, " ids"]) -> DecodeState:
    """Returns the state when every row has drawn one more token, the state of a rule apart."""
    return state._replace(
        token=jnp.broadcast_to(token, state.token.shape),
        position=state.position + 1,
        drawn=state.drawn + 1,
        done=state.done | jnp.any(token[:, None] == eos, axis=-1),
    )


class Entries(NamedTuple):
    """What a prompt is put into slots with, an entry for each slot; those beyond are no slot."""

    slots: Int[Array, " rows"]
    """Row numbers, then the number of rows, which is no row."""
    weights: Float[Array, "rows models_and_dials"]
    """Of the models, and the rule's dials."""
    seeds: UInt32[Array, "rows words"]
    """Data of the seeds' keys."""
    prompt_hash: UInt32[Array, ""]
    """Of the prompt's id."""
    samples: UInt32[Array, " rows"]
    """Which sample of the prompt each entry is."""
    attempts: UInt32[Array, " rows"]
    """Which of the draws of that sample."""


LAST_FOLD = 2**32 - 1
"""No row draws so many tokens: attempts have keys of their own."""


def row_keys(entries: Entries) -> Key[Array, " rows"]:
    """Returns the key of each entry: of its seed, prompt, sample, and of attempts after the first."""

    def key(seed, sample, attempt):
        first = jax.random.fold_in(jax.random.fold_in(seed, entries.prompt_hash), sample)
        again = jax.random.fold_in(jax.random.fold_in(first, np.uint32(LAST_FOLD)), attempt)
        return jnp.where(attempt == 0, first, again)

    return jax.vmap(key)(jax.random.wrap_key_data(entries.seeds), entries.samples, entries.attempts)


def by_stream(values: Any, counts: Sequence[int]) -> list[Any]:
    """Returns what there is of each model, those that are members of one together."""
    ends = np.cumsum(counts).tolist()
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


@partial(jax.jit, static_argnames=("configs", "rows", "slots", "rule", "mesh"))
def empty_state(
    configs: tuple[models.ModelConfig, ...],
    prefilled: Prefilled,
    rows: int,
    slots: tuple[int, ...],
    key: Key[Array, ""],
    rule: Rule,
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns a state of `rows` empty rows for prompts like those of `prefilled`, its caches with so many `slots`."""
    num_models, prompts = prefilled.token.shape
    caches = fitted_shapes(configs, prefilled.caches, slots)
    initial = getattr(rule, "initial_state", None)
    state = DecodeState(
        caches=jax.tree.map(
            lambda a: jnp.zeros((rows * a.shape[0] // prompts, *a.shape[1:]), a.dtype), caches
        ),
        token=jnp.zeros((num_models, rows), jnp.int32),
        position=jnp.zeros((num_models, rows), jnp.int32),
        weights=jnp.zeros((rows, num_models + len(dials_of(rule))), jnp.float32),
        key=jnp.broadcast_to(key, (rows,)),
        drawn=jnp.zeros(rows, jnp.int32),
        done=jnp.ones(rows, bool),
        rule_state=initial(rows) if initial else None,
    )
    return on_mesh(state, mesh)


def fitted_shapes(
    configs: Sequence[models.ModelConfig], caches: Sequence[Any], slots: Sequence[int]
) -> PyTree:
    """Returns the shapes of caches with so many slots."""
    windows = [config.windows for config in configs]
    return jax.eval_shape(lambda c: tuple(map(models.fit_cache, c, slots, windows)), tuple(caches))


def fit_caches(
    configs: Sequence[models.ModelConfig], state: DecodeState, slots: Sequence[int], mesh: Mesh | None = None
) -> DecodeState:
    """Returns `state`, which is used up, with caches of so many slots: see `models.fit_cache`.

    Array by array, each freed when the next is there: both caches as a whole might not fit.
    """

    def fit(array, there):
        if array.shape == there.shape:
            return array
        found = _fitted(array, there.shape, mesh)
        array.delete()
        return found

    shapes = fitted_shapes(configs, state.caches, slots)
    return state._replace(caches=jax.tree.map(fit, state.caches, shapes))


@partial(jax.jit, static_argnames=("shape", "mesh"))
def _fitted(array: Array, shape: tuple[int, ...], mesh: Mesh | None) -> Array:
    return placement.constrain_rows(models.fitted(array, shape), mesh)


def on_mesh(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """Returns the state where it lies: rows across `data`, heads of caches across `model`."""
    axes = {"token": 1, "position": 1}
    return DecodeState(
        *(
            placement.constrain_rows(value, mesh, axes.get(name, 0))
            for name, value in zip(state._fields, state, strict=True)
        )
    )


@partial(jax.jit, static_argnames=("rule", "mesh"), donate_argnames="state")
def fill_slots(
    state: DecodeState,
    prefilled: Prefilled,
    prompt: Int[Array, ""],
    entries: Entries,
    *,
    rule: Rule,
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns `state` with a prompt at its start in the slots of `entries`.

    Args:
      prompt: which of those of `prefilled`.
    """

    slots, prompts = entries.slots, prefilled.token.shape[1]

    def put_prompt(old, new):
        return _put_prompt(old, new, prompt, slots, prompts, mesh)

    def put_models(old, new):
        return old.at[:, slots].set(new[:, prompt][:, None], mode="drop")

    initial = getattr(rule, "initial_state", None)
    filled = DecodeState(
        caches=jax.tree.map(put_prompt, state.caches, prefilled.caches),
        token=put_models(state.token, prefilled.token),
        position=put_models(state.position, prefilled.position),
        weights=state.weights.at[slots].set(entries.weights, mode="drop"),
        key=state.key.at[slots].set(row_keys(entries), mode="drop"),
        drawn=state.drawn.at[slots].set(0, mode="drop"),
        done=state.done.at[slots].set(False, mode="drop"),
        # Where strengths share rows, each of them has its own, and the batch none.
        rule_state=jax.tree.map(lambda old, new: _put(old, new, slots, mesh), state.rule_state, initial(1))
        if initial and state.rule_state is not None
        else None,
    )
    return on_mesh(filled, mesh)


# A function of its own, for the arrays of all layers: each shape is traced but once.
@partial(jax.jit, static_argnames=("prompts", "mesh"))
def _put_prompt(
    old: Shaped[Array, "members_rows ..."],
    new: Shaped[Array, "members_prompts ..."],
    prompt: Int[Array, ""],
    slots: Int[Array, " rows"],
    prompts: int,
    mesh: Mesh | None,
) -> Shaped[Array, "members_rows ..."]:
    """Returns `old` with one of the `prompts` of `new` in the slots."""
    members = len(new) // prompts
    return _put(old, jax.lax.dynamic_slice_in_dim(new, prompt * members, members), slots, mesh)


def _put(
    old: Shaped[Array, "members_rows ..."],
    new: Shaped[Array, "members ..."],
    slots: Int[Array, " rows"],
    mesh: Mesh | None,
) -> Shaped[Array, "members_rows ..."]:
    """Returns `old` with `new`, which may have less room than it, in the slots."""
    new = models.fitted(new, (len(new), *old.shape[1:]))
    return placement.by_rows(_put_rows, mesh)(old, new, slots)


def _put_rows(
    first: Int[Array, ""],
    old: Shaped[Array, "part ..."],
    new: Shaped[Array, "members ..."],
    slots: Int[Array, " rows"],
) -> Shaped[Array, "part ..."]:
    """Returns a part of a batch, from its row `first` on, with `new` in the slots that lie in it.

    Slot by slot, each in its place: a scatter of all of them copies the whole batch.
    """
    members = len(new)

    def put(entry, rows):
        place = slots[entry] * members - first
        here = (place >= 0) & (place < len(rows))
        there = jax.lax.dynamic_slice_in_dim(rows, place, members)
        return jax.lax.dynamic_update_slice_in_dim(rows, jnp.where(here, new, there), place, axis=0)

    return jax.lax.fori_loop(0, jnp.sum(slots < len(slots)), put, old)
