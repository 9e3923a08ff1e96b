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
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.decoding.measure import TokenRecord, measure
from dera_jax.decoding.row_sampling import RowSampling
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.state import DecodeState, Prefilled, advanced, by_stream, on_mesh
from dera_jax.devices import placement
from dera_jax.rules.rule import Context, Rule, apply_rule, is_mixture


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


def decode_step(
    bound: Sequence[Any],
    state: DecodeState,
    recent: tuple[models.Recent, ...],
    sampling: Sampling | RowSampling,
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
    drawn, rule_state = draw_token(logits, state, sampling, rule)
    state = advanced(state, drawn.token, eos)._replace(rule_state=rule_state)
    return state, recent, drawn


def draw_token(
    logits: Float[Array, "models rows vocab"],
    state: DecodeState,
    sampling: Sampling | RowSampling,
    rule: Rule,
    instead: Callable[[Array, Array], Array] | None = None,
) -> tuple[Drawn, PyTree]:
    """Returns what every row draws where the models gave `logits`, and the rule's state after it.

    Args:
      instead: the rule's logits and what was drawn from them to the tokens that are taken; another token than the
        drawn one counts as certain.
    """
    context = Context(state.drawn, state.token, state.position)
    mixed, rule_state = apply_rule(rule, logits, state.weights, state.rule_state, context)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.drawn)
    token, sampling_logprob = sampling.sample(keys, mixed)
    if instead is not None:
        drawn, token = token, instead(mixed, token)
        sampling_logprob = jnp.where(token == drawn, sampling_logprob, 0.0)
    record = measure(logits, mixed, state.weights, token, is_mixture(rule))
    return Drawn(token, sampling_logprob, record), rule_state


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


# Static: configs, rule, steps, mesh, which sampling steps there are. Traced: everything a sweep varies, and all
# settings of sampling where they are a row's own.
@partial(jax.jit, static_argnames=("configs", "rule", "steps", "mesh"), donate_argnames="state")
def decode_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    sampling: Sampling | RowSampling,
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
    return on_mesh(state, mesh), placement.gathered(drawn, mesh)
