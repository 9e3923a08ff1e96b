"""Rules: functions from all models' logits and a row's weights to the logits to draw from."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dera_jax.common.code_hash import code_hash
from dera_jax.common.user_code import run
from dera_jax.realign import mix_centered, strength_weights
from dera_jax.rules.known import NamedRule, known_name, load_rule
from dera_jax.strengths import Strength, format_strength


def linear_rule(
    logits: Float[Array, "models rows vocab"],
    weights: Float[Array, "rows models"],
    state: None,
) -> tuple[Float[Array, "rows vocab"], None]:
    """The default rule: the mixture itself.

    A rule turns the models' logits into the logits to draw from; `--rule=module:function` puts
    another in its place. It is pure, sees the whole vocabulary, and may carry a state: then it has
    an attribute `initial_state`, a function from the number of rows to arrays of that many rows.
    One with an attribute `takes_context` that is true is given a `Context` as its fourth argument.
    """
    return mix_centered(logits, weights), state


def is_mixture(rule) -> bool:
    """Whether `rule` is the linear mixture, for which log z is defined."""
    return rule is linear_rule


def takes_values(rule) -> bool:
    """Whether the last model of `rule` is a value head: it says so by an attribute `takes_values` that is true."""
    return bool(getattr(rule, "takes_values", False))


Rule = Callable[..., tuple[Array, PyTree]]
"""(logits, weights, state) -> logits, state; with a `Context` behind the state if it has `takes_context`."""


class Context(NamedTuple):
    """Where rows are, for rules that say `takes_context = True`."""

    drawn: Int[Array, " rows"]
    """Tokens of the completion so far."""
    token: Int[Array, "models rows"]
    """The last token that each model has read: the prompt's own, then the one drawn for all."""
    position: Int[Array, "models rows"]
    """Of that token, from 0."""


def apply_rule(
    rule: Rule, logits: Array, weights: Array, state: PyTree, context: Context
) -> tuple[Any, PyTree]:
    """Returns the logits to draw from, and the rule's state after them."""
    more = (context,) if getattr(rule, "takes_context", False) else ()
    return rule(logits, weights, state, *more)


def dials_of(rule: Rule) -> tuple[float, ...]:
    """Returns the values of a rule's dials; most have none."""
    return getattr(rule, "dials", ())


def row_weights(rule: Rule, lambda_: Strength) -> Float[np.ndarray, " models_and_dials"]:
    """Returns the models' weights at a strength, and behind them the rule's dials."""
    return np.append(strength_weights(lambda_), np.asarray(dials_of(rule), np.float32))


def check_strength(rule: Rule, lambda_: Strength) -> None:
    """Raises ValueError where a rule averages probabilities and a model's weight is below 0."""
    if getattr(rule, "averages", False) and min(strength_weights(lambda_)) < 0:
        raise ValueError(
            f"rule {named(rule).name} averages: expected strengths of at least 0 that sum to at most 1, found "
            f"{format_strength(lambda_)}"
        )


def named(rule: Rule) -> NamedRule:
    """Returns a rule with the name that rows carry: that of a known one, or module:function."""
    if written := getattr(rule, "name", None):
        return NamedRule(rule, str(written))
    name = f"{rule.__module__}:{getattr(rule, '__qualname__', type(rule).__qualname__)}"
    return NamedRule(rule, known_name(name) or name)


def as_rule(rule: Rule | str) -> Rule:
    """Returns the rule that Python code names as `--rule` does, or gives itself.

    Raises:
      ValueError: there is none of that name.
    """
    return load_rule(rule).function if isinstance(rule, str) else rule


LINEAR = named(linear_rule)
"""The mixture."""


def rule_code(rule: Rule) -> str | None:
    """Returns a hash of a rule's code; None of the mixture, which its name decides."""
    parts = getattr(rule, "parts", (rule,))
    codes = [None if is_mixture(part) else code_hash(part) for part in parts]
    return codes[0] if len(codes) == 1 else "+".join(code or "linear" for code in codes)


def check_rule(rule: NamedRule, models: int, vocab: int) -> None:
    """Raises ValueError unless a rule turns logits of all models into logits of a row, without running it."""
    (function, name), rows, dtype = rule, 2, np.float32
    logits = jax.ShapeDtypeStruct((models, rows, vocab), dtype)
    weights = jax.ShapeDtypeStruct((rows, models + len(dials_of(function))), dtype)
    initial = getattr(function, "initial_state", None)
    each = jax.ShapeDtypeStruct((models, rows), np.int32)
    context = Context(jax.ShapeDtypeStruct((rows,), np.int32), each, each)

    def traced():
        state = jax.eval_shape(lambda: initial(rows) if initial else None)
        mixed, after = jax.eval_shape(partial(apply_rule, function), logits, weights, state, context)
        return state, mixed, after

    state, mixed, after = run(f"rule {name} fails on logits[models, rows, vocab]", traced)
    if getattr(mixed, "shape", None) != (rows, vocab):
        found = getattr(mixed, "shape", type(mixed).__name__)
        raise ValueError(f"rule {name}: expected logits of shape {(rows, vocab)}, found {found}")
    if after != state:
        raise ValueError(f"rule {name}: expected a state like that of initial_state, found another")
