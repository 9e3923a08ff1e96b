"""The loop on the device: several models, one token at a time, any strength in any row.

    prefill_prompt  a prompt's caches, computed once for all its strengths and samples
    fill_slots      puts a prefilled prompt into some rows of the running batch
    decode_step     every model's logits -> the rule -> a token
    decode_chunk    a jitted scan of steps

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
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from dera_jax import models
from dera_jax.measure import TokenRecord, measure
from dera_jax.policies import Policy
from dera_jax.realign import is_mixture
from dera_jax.sampling import Sampling, sample

Rule = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]


def rule_name(rule: Rule) -> str:
    """Returns the name that rows carry: linear, or module:function."""
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    return "linear" if is_mixture(rule) else f"{rule.__module__}:{name}"


def check_rule(rule: Rule, name: str, policies: Sequence[Policy]) -> None:
    """Raises ValueError unless `rule` turns logits of all models into logits of a row, without running it."""
    vocab, rows, dtype = min(policy.config.vocab_size for policy in policies), 2, np.float32
    logits = jax.ShapeDtypeStruct((len(policies), rows, vocab), dtype)
    weights = jax.ShapeDtypeStruct((rows, len(policies)), dtype)
    initial = getattr(rule, "initial_state", None)
    try:
        state = jax.eval_shape(lambda: initial(rows) if initial else None)
        mixed, after = jax.eval_shape(rule, logits, weights, state)
    except Exception as error:  # the function is the user's and may fail in any way
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(f"rule {name} fails on logits[models, rows, vocab]: {reason}") from error
    if getattr(mixed, "shape", None) != (rows, vocab):
        found = getattr(mixed, "shape", type(mixed).__name__)
        raise ValueError(f"rule {name}: expected logits of shape {(rows, vocab)}, found {found}")
    if after != state:
        raise ValueError(f"rule {name}: expected a state like that of initial_state, found another")


class Prefilled(NamedTuple):
    """A prompt, ready to be continued: all but its last token are in the caches, one row each."""

    caches: tuple[Any, ...]
    token: Int[Array, " models"]
    position: Int[Array, " models"]


class DecodeState(NamedTuple):
    """The carry of the scan."""

    caches: tuple[Any, ...]
    """Of each model."""
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


# Static: configs. Traced: params, tokens, mask. One compilation per bucket.
@partial(jax.jit, static_argnames="configs")
def prefill_prompt(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    tokens: Sequence[Int[Array, "1 _bucket"]],
    mask: Sequence[Bool[Array, "1 _bucket"]],
    last: Int[Array, " models"],
) -> Prefilled:
    """Returns the caches of a prompt without its last token, which is fed by the first step.

    Args:
      tokens: for each model its own prompt without the last token, left-padded to a bucket.
      last: for each model the last token.
    """
    caches = tuple(
        models.bind(c, p).prefill(t, m) for c, p, t, m in zip(configs, params, tokens, mask, strict=True)
    )
    position = jnp.stack([m.sum() for m in mask]).astype(jnp.int32)
    return Prefilled(caches, last, position)


def empty_state(
    prompt: Prefilled, rows: int, new_tokens: int, key: Key[Array, ""], rule: Rule
) -> DecodeState:
    """Returns a state of `rows` empty rows with room for prompts like `prompt` and `new_tokens` more."""
    num_models = len(prompt.caches)
    caches = jax.eval_shape(lambda: _with_room(prompt.caches, new_tokens))
    initial = getattr(rule, "initial_state", None)
    return DecodeState(
        caches=jax.tree.map(lambda a: jnp.zeros((rows, *a.shape[1:]), a.dtype), caches),
        token=jnp.zeros((num_models, rows), jnp.int32),
        position=jnp.zeros((num_models, rows), jnp.int32),
        weights=jnp.zeros((rows, num_models), jnp.float32),
        key=jnp.broadcast_to(key, (rows,)),
        drawn=jnp.zeros(rows, jnp.int32),
        done=jnp.ones(rows, bool),
        rule_state=initial(rows) if initial else None,
    )


@partial(jax.jit, static_argnames=("new_tokens", "rule"), donate_argnames="state")
def fill_slots(
    state: DecodeState,
    prompt: Prefilled,
    slots: Int[Array, " rows"],
    weights: Float[Array, "rows models"],
    key: Key[Array, ""],
    prompt_hash: UInt32[Array, ""],
    samples: UInt32[Array, " rows"],
    *,
    new_tokens: int,
    rule: Rule,
) -> DecodeState:
    """Returns `state` with `prompt` at the start in `slots`.

    Args:
      slots: row numbers; the number of rows, which is no row, where there is nothing to fill.
      weights: of the models, for each entry of `slots`.
      key: of the run.
      prompt_hash: of the prompt's id.
      samples: which sample of the prompt each entry is.
    """
    rows = slots.shape[0]

    def put(old, new):
        return old.at[slots].set(jnp.broadcast_to(new, (rows, *new.shape[1:])), mode="drop")

    def put_models(old, new):
        return old.at[:, slots].set(new[:, None], mode="drop")

    prompt_key = jax.random.fold_in(key, prompt_hash)
    keys = jax.vmap(lambda sample: jax.random.fold_in(prompt_key, sample))(samples)
    initial = getattr(rule, "initial_state", None)
    return DecodeState(
        caches=jax.tree.map(put, state.caches, _with_room(prompt.caches, new_tokens)),
        token=put_models(state.token, prompt.token),
        position=put_models(state.position, prompt.position),
        weights=state.weights.at[slots].set(weights, mode="drop"),
        key=state.key.at[slots].set(keys, mode="drop"),
        drawn=state.drawn.at[slots].set(0, mode="drop"),
        done=state.done.at[slots].set(False, mode="drop"),
        rule_state=jax.tree.map(put, state.rule_state, initial(1)) if initial else None,
    )


def _with_room(caches: tuple[Any, ...], new_tokens: int) -> tuple[Any, ...]:
    return tuple(models.grow_cache(c, new_tokens) for c in caches)


def decode_step(
    bound: Sequence[Any], state: DecodeState, sampling: Sampling, eos: Int[Array, " ids"], rule: Rule
) -> tuple[DecodeState, Drawn]:
    """Returns the state with one more token in every row, and what was drawn.

    Args:
      bound: the models, the reference first.
      eos: ids that end a row.
    """
    steps = [
        model.step(token, position, cache)
        for model, token, position, cache in zip(
            bound, state.token, state.position, state.caches, strict=True
        )
    ]
    # Rows beyond a tokenizer's size may be padded differently from model to model.
    vocab = min(h.shape[-1] for h, _ in steps)
    logits = jnp.stack([h[:, :vocab] for h, _ in steps])
    mixed, rule_state = rule(logits, state.weights, state.rule_state)
    keys = jax.vmap(jax.random.fold_in)(state.key, state.drawn)
    token, sampling_logprob = sample(keys, mixed, sampling)
    record = measure(logits, mixed, state.weights, token, is_mixture(rule))
    state = state._replace(
        caches=tuple(cache for _, cache in steps),
        token=jnp.broadcast_to(token, state.token.shape),
        position=state.position + 1,
        drawn=state.drawn + 1,
        done=state.done | jnp.any(token[:, None] == eos, axis=-1),
        rule_state=rule_state,
    )
    return state, Drawn(token, sampling_logprob, record)


# Static: configs, rule, steps, which sampling steps there are. Traced: everything a sweep varies.
@partial(jax.jit, static_argnames=("configs", "rule", "steps"), donate_argnames="state")
def decode_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    sampling: Sampling,
    eos: Int[Array, " ids"],
    *,
    rule: Rule,
    steps: int,
) -> tuple[DecodeState, Drawn]:
    """Returns the state after `steps` more tokens, and each step's tokens and figures [steps, rows]."""
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]
    return jax.lax.scan(lambda s, _: decode_step(bound, s, sampling, eos, rule), state, length=steps)
