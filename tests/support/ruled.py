"""One step of a rule on logits that are given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax.rules.known import load_rule
from dera_jax.rules.rule import Context, apply_rule, row_weights


def random_logits(models=2, rows=4, vocab=50, scale=2.0, seed=0):
    """Returns logits [models, rows, vocab]."""
    numbers = np.random.default_rng(seed)
    return jnp.asarray(numbers.normal(0, scale, (models, rows, vocab)), jnp.float32)


def at_once(spec, logits, *strength, drawn=0):
    """Returns the log-probabilities [rows, vocab] that a rule makes at a strength, after so many tokens."""
    rule, (models, rows, _) = load_rule(spec).function, logits.shape
    weights = jnp.asarray(np.stack([row_weights(rule, strength)] * rows))
    each = jnp.zeros((models, rows), jnp.int32)
    initial = getattr(rule, "initial_state", None)
    context = Context(jnp.full(rows, drawn, jnp.int32), each, each)
    mixed, _ = jax.jit(partial(apply_rule, rule))(
        logits, weights, initial(rows) if initial else None, context
    )
    assert jnp.isfinite(mixed).all()
    return np.asarray(jax.nn.log_softmax(mixed), np.float64)


def logprobs_of(logits):
    """Returns each model's log-probabilities, in float64."""
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


def nats(logprobs, reference):
    """Returns KL(π ‖ π_ref) of every row."""
    return (np.exp(logprobs) * (logprobs - reference)).sum(axis=-1)
