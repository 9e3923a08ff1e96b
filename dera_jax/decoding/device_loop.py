"""The loop on the device: several models, one token at a time, any strength in any row.

    prefill_prompts  caches of prompts, computed once for all their strengths and samples
    fill_slots       puts a prefilled prompt into some rows of the running batch
    decode_step      every model's logits -> the rule -> a token
    decode_chunk     a jitted scan of steps

A batch is a fixed number of rows. Rows know nothing of each other: each has its own strength, random
key, place in the cache and number of tokens drawn, so a row's completion does not depend on its
neighbours, on when its slot was filled, or on what was there before.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt32

from dera_jax import models
from dera_jax.decoding.measure import TokenRecord, measure
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.devices import placement
from dera_jax.rules.rule import Rule, is_mixture


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
    weights: Float[Array, "rows models"]
    """Strength of each row, as weights of the models."""
    key: Key[Array, " rows"]
    """Of the row's prompt and sample; the number of tokens drawn is folded in, the strength is not."""
    drawn: Int[Array, " rows"]
    """Tokens drawn so far."""
    done: Bool[Array, " rows"]
    """Whether the row has ended or was never filled."""
    rule_state: PyTree


class Drawn(NamedTuple):
    """One step's output."""

    token: Int[Array, " rows"]
    sampling_logprob: Float[Array, " rows"]
    """Log-probability, in nats, under the distribution drawn from (after temperature and truncation)."""
    record: TokenRecord


# Static: configs, mesh. Traced: params, tokens, mask. One compilation per bucket.
@partial(jax.jit, static_argnames=("configs", "mesh"))
def prefill_prompts(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    tokens: Sequence[Int[Array, "prompts _bucket"]],
    mask: Sequence[Bool[Array, "prompts _bucket"]],
    last: Int[Array, "models prompts"],
    mesh: Mesh | None = None,
) -> Prefilled:
    """Returns the caches of prompts without their last tokens, which are fed by the first step.

    Args:
      tokens: for each model its own prompts without the last token, left-padded to a bucket.
      last: for each model the last tokens.
      mesh: that the parameters lie on, if any; prompts are divided across its `data`.
    """
    counts = [config.members for config in configs]

    def joined(values):
        by_model = (jnp.stack(each, axis=1) for each in by_stream(values, counts))
        return [placement.constrain_rows(each.reshape(-1, each.shape[-1]), mesh) for each in by_model]

    bound = map(models.bind, configs, params)
    read = (model.prefill(t, m) for model, t, m in zip(bound, joined(tokens), joined(mask), strict=True))
    caches = placement.constrain_rows(tuple(map(models.without_padding, read)), mesh)
    position = jnp.stack([m.sum(axis=1) for m in mask]).astype(jnp.int32)
    return Prefilled(caches, last, position)


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
        weights=jnp.zeros((rows, num_models), jnp.float32),
        key=jnp.broadcast_to(key, (rows,)),
        drawn=jnp.zeros(rows, jnp.int32),
        done=jnp.ones(rows, bool),
        rule_state=initial(rows) if initial else None,
    )
    return _on_mesh(state, mesh)


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


def _on_mesh(state: DecodeState, mesh: Mesh | None) -> DecodeState:
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
    slots: Int[Array, " rows"],
    weights: Float[Array, "rows models"],
    key: Key[Array, ""],
    prompt_hash: UInt32[Array, ""],
    samples: UInt32[Array, " rows"],
    *,
    rule: Rule,
    mesh: Mesh | None = None,
) -> DecodeState:
    """Returns `state` with a prompt at its start in `slots`.

    Args:
      prompt: which of those of `prefilled`.
      slots: row numbers, then the number of rows, which is no row, for each that is not filled.
      weights: of the models, for each entry of `slots`.
      key: of the run.
      prompt_hash: of the prompt's id.
      samples: which sample of the prompt each entry is.
    """

    prompts = prefilled.token.shape[1]

    def put_prompt(old, new):
        return _put_prompt(old, new, prompt, slots, prompts, mesh)

    def put_models(old, new):
        return old.at[:, slots].set(new[:, prompt][:, None], mode="drop")

    prompt_key = jax.random.fold_in(key, prompt_hash)
    keys = jax.vmap(lambda sample: jax.random.fold_in(prompt_key, sample))(samples)
    initial = getattr(rule, "initial_state", None)
    filled = DecodeState(
        caches=jax.tree.map(put_prompt, state.caches, prefilled.caches),
        token=put_models(state.token, prefilled.token),
        position=put_models(state.position, prefilled.position),
        weights=state.weights.at[slots].set(weights, mode="drop"),
        key=state.key.at[slots].set(keys, mode="drop"),
        drawn=state.drawn.at[slots].set(0, mode="drop"),
        done=state.done.at[slots].set(False, mode="drop"),
        rule_state=jax.tree.map(lambda old, new: _put(old, new, slots, mesh), state.rule_state, initial(1))
        if initial
        else None,
    )
    return _on_mesh(filled, mesh)


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


def decode_step(
    bound: Sequence[Any],
    state: DecodeState,
    recent: tuple[models.Recent, ...],
    sampling: Sampling,
    eos: Int[Array, " ids"],
    rule: Rule,
) -> tuple[DecodeState, tuple[models.Recent, ...], Drawn]:
    """Returns the state and what is not in its caches yet with one more token in every row, and what was drawn.

    Args:
      bound: the models, the reference first.
      recent: of each model.
      eos: ids that end a row.
    """
    logits, recent = forward_step(bound, state, recent)
    mixed, rule_state = rule(logits, state.weights, state.rule_state)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.drawn)
    token, sampling_logprob = sample(keys, mixed, sampling)
    record = measure(logits, mixed, state.weights, token, is_mixture(rule))
    state = state._replace(
        token=jnp.broadcast_to(token, state.token.shape),
        position=state.position + 1,
        drawn=state.drawn + 1,
        done=state.done | jnp.any(token[:, None] == eos, axis=-1),
        rule_state=rule_state,
    )
    return state, recent, Drawn(token, sampling_logprob, record)


def forward_step(
    bound: Sequence[Any], state: DecodeState, recent: tuple[models.Recent, ...]
) -> tuple[Float[Array, "models rows vocab"], tuple[models.Recent, ...]]:
    """Returns each model's logits after the state's tokens, and its `recent` with them."""
    counts = [model.config.members for model in bound]
    tokens, positions = (by_stream(each, counts) for each in (state.token, state.position))
    fed = zip(bound, tokens, positions, state.caches, recent, strict=True)
    found, recent = zip(*(m.step(t.T.ravel(), p.T.ravel(), *kept) for m, t, p, *kept in fed), strict=True)
    each = [
        logits.reshape(-1, count, logits.shape[-1])[:, member]
        for logits, count in zip(found, counts, strict=True)
        for member in range(count)
    ]
    # Rows beyond a tokenizer's size may be padded differently from model to model.
    vocab = min(h.shape[-1] for h in each)
    return jnp.stack([h[:, :vocab] for h in each]), recent


def scan_steps(step: Callable, state: DecodeState, steps: int) -> tuple[DecodeState, Any]:
    """Returns the state after `steps` of `step(state, recent) -> state, recent, output`, and all outputs.

    The caches are not carried from step to step: each reads them where they lie, and they are written once.
    """

    def body(carry, _):
        after, recent, output = step(carry[0]._replace(caches=state.caches), carry[1])
        return (after._replace(caches=()), recent), output

    recent = tuple(models.no_recent(cache, steps) for cache in state.caches)
    (after, recent), outputs = jax.lax.scan(body, (state._replace(caches=()), recent), length=steps)
    caches = tuple(map(models.store_recent, state.caches, recent))
    return after._replace(caches=caches), outputs


# Static: configs, rule, steps, mesh, which sampling steps there are. Traced: everything a sweep varies.
@partial(jax.jit, static_argnames=("configs", "rule", "steps", "mesh"), donate_argnames="state")
def decode_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    sampling: Sampling,
    eos: Int[Array, " ids"],
    *,
    rule: Rule,
    steps: int,
    mesh: Mesh | None = None,
) -> tuple[DecodeState, Drawn]:
    """Returns the state after `steps` more tokens, and each step's tokens and figures [steps, rows]."""
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]

    def step(state, recent):
        return decode_step(bound, state, recent, sampling, eos, rule)

    state, drawn = scan_steps(step, state, steps)
    return _on_mesh(state, mesh), placement.gathered(drawn, mesh)
