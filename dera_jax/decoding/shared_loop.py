"""The loop on the device where a row carries several strengths: one forward pass, a draw for each of them.

Strengths share their random numbers, so completions of one prompt and sample begin alike at neighbouring strengths.
A *lane* is a strength at work; lanes that have drawn the same tokens so far share a row of the batch. Each step
computes the models once for a row, and mixes, draws and measures once for a lane. The row goes on with the token
of its leading lane; what lanes draw that have drawn another token before is left to the host to throw away.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from dera_jax import models
from dera_jax.decoding.device_loop import Drawn, forward_step, scan_steps
from dera_jax.decoding.measure import measure
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.state import DecodeState, advanced, on_mesh
from dera_jax.devices import placement
from dera_jax.rules.rule import Context, Rule, apply_rule, is_mixture


class Lanes(NamedTuple):
    """The strengths at work, in the part of the batch (a device's own rows) that their row lies in."""

    row: Int[Array, "parts lanes"]
    """That a lane draws for, counted in its part."""
    leader: Int[Array, "parts rows"]
    """The lane whose tokens a row goes on with, counted in their part."""
    weights: Float[Array, "parts lanes models_and_dials"]
    """Each lane's strength, as weights of the models, and behind them the rule's dials."""
    blocks: Int[Array, ""]
    """Runs of as many lanes as a part has rows that hold lanes at work: what is behind them is not computed."""
    rule_state: PyTree
    """Of each lane, [parts, lanes, …]."""


# Static: configs, rule, steps, mesh, which sampling steps there are. Traced: strengths, and which row is whose.
@partial(jax.jit, static_argnames=("configs", "rule", "steps", "mesh"), donate_argnames="state")
def decode_shared_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    lanes: Lanes,
    sampling: Sampling,
    eos: Int[Array, " ids"],
    *,
    rule: Rule,
    steps: int,
    mesh: Mesh | None = None,
) -> tuple[DecodeState, PyTree, Drawn]:
    """Returns the state after `steps` more tokens, the lanes' rule states, and what each lane drew [steps, lanes]."""
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]

    def step(state, recent):
        return _shared_step(bound, state, recent, lanes, sampling, eos, rule)

    state, drawn = scan_steps(step, state._replace(rule_state=lanes.rule_state), steps)
    rule_state = state.rule_state
    drawn = jax.tree.map(lambda a: a.reshape(steps, -1, *a.shape[3:]), drawn)
    return on_mesh(state._replace(rule_state=None), mesh), rule_state, placement.gathered(drawn, mesh)


def _shared_step(
    bound: Sequence[Any],
    state: DecodeState,
    recent: tuple[models.Recent, ...],
    lanes: Lanes,
    sampling: Sampling,
    eos: Int[Array, " ids"],
    rule: Rule,
) -> tuple[DecodeState, tuple[models.Recent, ...], Drawn]:
    logits, recent = forward_step(bound, state, recent)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.drawn)
    of_rows = logits, keys, Context(state.drawn, state.token, state.position)
    drawn, rule_state = _draw_lanes(of_rows, lanes, state.rule_state, sampling, rule)
    token = jnp.take_along_axis(drawn.token, lanes.leader, axis=1).ravel()
    state = advanced(state, token, eos)._replace(rule_state=rule_state)
    return state, recent, drawn


def _draw_lanes(
    of_rows: tuple[Array, Array, Context], lanes: Lanes, rule_state: PyTree, sampling: Sampling, rule: Rule
) -> tuple[Drawn, PyTree]:
    """Returns what all lanes draw [parts, lanes] and their rule states after it, block by block.

    Args:
      of_rows: the models' logits [models, rows, vocab], the draw's keys [rows], and where the rows are.
    """
    parts, rows = lanes.leader.shape

    def block(start: Int[Array, ""]) -> tuple[Drawn, PyTree]:
        def cut(lanes_: Array) -> Array:
            return _joined(jax.lax.dynamic_slice_in_dim(lanes_, start, rows, axis=1), 0)

        row = jax.lax.dynamic_slice_in_dim(lanes.row, start, rows, axis=1)
        logits, keys, context = of_rows
        keys = _rows_of(keys, row, 0)
        context = Context(
            _rows_of(context.drawn, row, 0),
            _rows_of(context.token, row, 1),
            _rows_of(context.position, row, 1),
        )
        logits, weights = jax.lax.optimization_barrier((_rows_of(logits, row, 1), cut(lanes.weights)))
        mixed, after = apply_rule(rule, logits, weights, jax.tree.map(cut, rule_state), context)
        token, logprob = sampling.sample(keys, mixed)
        drawn = Drawn(token, logprob, measure(logits, mixed, weights, token, is_mixture(rule)))
        return jax.tree.map(lambda a: a.reshape(parts, rows, *a.shape[1:]), (drawn, after))

    def put(number: Int[Array, ""], all_lanes: tuple[Drawn, PyTree]) -> tuple[Drawn, PyTree]:
        start = number * rows
        return jax.tree.map(
            lambda a, new: jax.lax.dynamic_update_slice_in_dim(a, new, start, axis=1), all_lanes, block(start)
        )

    shapes = jax.eval_shape(block, jnp.int32(0))
    empty = jax.tree.map(lambda a: jnp.zeros((parts, lanes.row.shape[1], *a.shape[2:]), a.dtype), shapes)
    return jax.lax.fori_loop(0, lanes.blocks, put, empty)


def _rows_of(values: Array, row: Int[Array, "parts lanes"], axis: int) -> Array:
    """Returns the rows that lanes draw for in the place of all rows; no part reads another's."""
    shape = values.shape
    parts = values.reshape(*shape[:axis], len(row), -1, *shape[axis + 1 :])
    found = jax.vmap(lambda own, which: jnp.take(own, which, axis=axis), (axis, 0), axis)(parts, row)
    return _joined(found, axis)


def _joined(values: Array, axis: int) -> Array:
    return values.reshape(*values.shape[:axis], -1, *values.shape[axis + 2 :])
