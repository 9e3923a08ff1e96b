"""The loop on the device that checks several drafted tokens at once: the same text in fewer passes.

Draws are coupled. The drafter draws each token with the row's own key at that position, from its own law; the rule
draws with the same key. Drafts are kept for as long as both drew the same token, and what the rule drew is the first
that differs. So every token is the rule's own draw, at any temperature, truncation and strength, and nothing is
corrected or thrown at random. With total variation TV between the two laws a draft is kept with a probability of at
least (1 − TV)/(1 + TV), for draws by the Gumbel trick, and of at most 1 − TV.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.decoding.device_loop import Drawn, draw_token
from dera_jax.decoding.history import History, look_up, remember
from dera_jax.decoding.row_sampling import RowSampling
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.state import DecodeState, by_stream, on_mesh
from dera_jax.devices import placement
from dera_jax.rules.rule import Rule

Logits = Float[Array, "width rows vocab"]


# Static: configs, rule, drafter, length, passes, mesh. Traced: everything else. One compilation per drafter.
@partial(
    jax.jit,
    static_argnames=("configs", "rule", "drafter", "length", "passes", "mesh"),
    donate_argnames="state",
)
def decode_drafted_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: DecodeState,
    history: History | None,
    sampling: Sampling | RowSampling,
    eos: Int[Array, " ids"],
    *,
    rule: Rule,
    drafter: int | None,
    length: int,
    passes: int,
    mesh: Mesh | None = None,
) -> tuple[DecodeState, Drawn, Bool[Array, "steps rows"]]:
    """Returns the state after `passes`, what they drew [passes · (length + 1), rows], and which of it is kept.

    Args:
      history: the rows' tokens, where drafts are looked up in them.
      drafter: number of the model that drafts; None: what followed the last tokens before.
      length: tokens drafted in each pass; ≥ 1.
    """
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]

    def one_pass(carry, _):
        state, recent, history = carry
        state = state._replace(caches=caches)
        state, recent, history, drawn, kept = _pass(
            bound, state, recent, history, sampling, eos, rule, drafter, length
        )
        return (state._replace(caches=()), recent, history), (drawn, kept)

    caches = state.caches
    room = passes * (length + 1)
    recent = tuple(models.no_recent(cache, room, by_row=True) for cache in caches)
    carry = state._replace(caches=()), recent, history
    (after, recent, _), (drawn, kept) = jax.lax.scan(one_pass, carry, length=passes)
    after = after._replace(caches=tuple(map(models.store_recent, caches, recent)))
    there = jnp.arange(length + 1)[:, None] < kept[:, None]
    outputs = jax.tree.map(lambda a: a.reshape(room, *a.shape[2:]), (drawn, there))
    return on_mesh(after, mesh), *placement.gathered(outputs, mesh)


def _pass(
    bound: Sequence[Any],
    state: DecodeState,
    recent: tuple[models.Recent, ...],
    history: History | None,
    sampling: Sampling | RowSampling,
    eos: Int[Array, " ids"],
    rule: Rule,
    drafter: int | None,
    length: int,
) -> tuple[DecodeState, tuple[models.Recent, ...], History | None, Drawn, Int[Array, " rows"]]:
    """Returns all after one pass, what was drawn at each of its places, and how many of them each row keeps."""
    vocab = min(model.config.vocab_size for model in bound)
    if drafter is None:
        drafts, own, read = look_up(history, length), None, None
    else:
        drafts, own, read = _draft(bound[drafter], drafter, state, recent[drafter], sampling, length, vocab)
    logits, recent = _read(bound, state, recent, drafts, vocab, drafter, own, read)
    token = jnp.concatenate(
        [state.token[None], jnp.broadcast_to(drafts[:, None], (length, *state.token.shape))]
    )
    drawn, rule_states = _draw(logits, token, state, sampling, rule)
    same = (drawn.token[:length] == drafts).astype(jnp.int32)
    kept = 1 + jnp.sum(jnp.cumprod(same, axis=0), axis=0)
    after = _advanced(state, drawn.token, rule_states, kept, eos)
    recent = tuple(
        each._replace(count=each.count - (length + 1) + jnp.repeat(kept, model.config.members))
        for model, each in zip(bound, recent, strict=True)
    )
    if history is not None:
        history = remember(history, drawn.token, kept)
    return after, recent, history, drawn, kept


def _draft(model, number: int, state: DecodeState, recent, sampling, length: int, vocab: int):
    """Returns a model's own drafts [length, rows], its logits [length + 1, rows, vocab], and its `recent`."""
    cache, position = state.caches[number], state.position[number]

    def step(carry, ahead):
        token, recent = carry
        logits, recent = model.step(token, position + ahead, cache, recent)
        keys = jax.vmap(jax.random.fold_in)(state.key, state.drawn + ahead)
        token, _ = sampling.sample(keys, logits[:, :vocab])
        return (token, recent), (token, logits[:, :vocab])

    (_, recent), (drafts, logits) = jax.lax.scan(step, (state.token[number], recent), jnp.arange(length + 1))
    return drafts[:length], logits, recent


def _read(bound, state: DecodeState, recent, drafts, vocab: int, drafter: int | None, own, read):
    """Returns all models' logits [width, models, rows, vocab] after the last tokens and the drafts, and `recent`.

    Args:
      own: those of the drafter, who has read them.
      read: its `recent`.
    """
    counts = [model.config.members for model in bound]
    tokens, positions = (by_stream(each, counts) for each in (state.token, state.position))
    each: list[Logits] = []
    after = []
    for number, model in enumerate(bound):
        if number == drafter:
            each.append(own)
            after.append(read)
            continue
        first, start = tokens[number].T, positions[number].T  # [rows, members]
        fed = jnp.broadcast_to(drafts.T[:, None], (*first.shape, len(drafts)))
        fed = jnp.concatenate([first[..., None], fed], axis=-1)
        places = start[..., None] + jnp.arange(fed.shape[-1])
        flat = (a.reshape(-1, a.shape[-1]) for a in (fed, places))
        logits, new = model.steps(*flat, state.caches[number], recent[number])
        logits = logits[..., :vocab].reshape(*fed.shape, vocab)
        each += [logits[:, member].swapaxes(0, 1) for member in range(counts[number])]
        after.append(new)
    return jnp.stack(each, axis=1), tuple(after)


def _draw(logits, token, state: DecodeState, sampling, rule: Rule) -> tuple[Drawn, PyTree]:
    """Returns what is drawn at every place [width, rows], and the rule's states after each.

    Place by place, as the plain loop draws it: a rule may have a state.
    """

    def draw(rule_state, each):
        ahead, logits, token = each
        here = state._replace(
            token=token,
            position=state.position + ahead,
            drawn=state.drawn + ahead,
            rule_state=rule_state,
        )
        drawn, after = draw_token(logits, here, sampling, rule)
        return after, (drawn, after)

    _, (drawn, states) = jax.lax.scan(draw, state.rule_state, (jnp.arange(len(logits)), logits, token))
    return drawn, states


def _advanced(
    state: DecodeState,
    token: Int[Array, "width rows"],
    rule_states: PyTree,
    kept: Int[Array, " rows"],
    eos: Int[Array, " ids"],
) -> DecodeState:
    """Returns the state when each row has drawn as many tokens as it keeps."""
    rows = jnp.arange(token.shape[1])
    ended = jnp.any(token[..., None] == eos, axis=-1) & (jnp.arange(len(token))[:, None] < kept)
    return state._replace(
        token=jnp.broadcast_to(token[kept - 1, rows], state.token.shape),
        position=state.position + kept,
        drawn=state.drawn + kept,
        done=state.done | ended.any(axis=0),
        rule_state=jax.tree.map(lambda a: a[kept - 1, rows], rule_states),
    )
