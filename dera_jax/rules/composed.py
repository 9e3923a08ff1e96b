"""Rules made of parts: the strength of each token, then the models' logits as one, then the words that are kept.

    weighs    (weights, step, **dials) -> weights                     first, nudging, kl-budget …
    combines  (logits, weights, state, **dials) -> logits, state      linear, power …: a `Rule`
    keeps     (logits, step, **dials) -> logits                       plausible

Values of dials are no part of a compiled program: they come with every row, behind the models' weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dera_jax.rules.known import Part
from dera_jax.rules.rule import Context, Rule, apply_rule, linear_rule


class Step(NamedTuple):
    """What a part sees beside what it changes."""

    logits: Float[Array, "models rows vocab"]
    """Of all models, the reference first; values of words are none."""
    context: Context
    combine: Callable[[Array], Array]
    """From weights of the models to the logits that the rule's combination makes with them."""
    weights: Float[Array, "rows models"]
    """Of the models: those of the strength, as the parts before have changed it."""


@dataclass(frozen=True)
class _Bound:
    """A part's function, and which of the rule's dials are its own."""

    function: Callable
    dials: tuple[str, ...]
    first: int

    def of(self, values: Array) -> dict[str, Array]:
        """Returns its dials, each a column [rows, 1]."""
        columns = values[:, self.first : self.first + len(self.dials)]
        return {name: columns[:, number, None] for number, name in enumerate(self.dials)}


@dataclass(frozen=True)
class Composed:
    """A rule of parts; two with the same parts are equal, whatever their dials."""

    weighing: tuple[_Bound, ...]
    combination: _Bound
    keeping: tuple[_Bound, ...]
    name: str = field(compare=False)
    dials: tuple[float, ...] = field(compare=False)
    """Values of all parts' dials."""
    takes_context = True

    @property
    def takes_values(self) -> bool:
        """Whether the last model is a value head."""
        return bool(getattr(self.combination.function, "takes_values", False))

    @property
    def averages(self) -> bool:
        """Whether no weight may be negative."""
        return bool(getattr(self.combination.function, "averages", False))

    @property
    def parts(self) -> tuple[Callable, ...]:
        """The functions that it is made of."""
        return tuple(bound.function for bound in (*self.weighing, self.combination, *self.keeping))

    @property
    def initial_state(self) -> Callable[[int], PyTree] | None:
        """Makes the states of all parts; None if none has one."""
        initial = [getattr(function, "initial_state", None) for function in self.parts]
        if not any(initial):
            return None
        return lambda rows: tuple(make and make(rows) for make in initial)

    def __call__(
        self,
        logits: Float[Array, "models rows vocab"],
        weights: Float[Array, "rows models_and_dials"],
        state: PyTree,
        context: Context,
    ) -> tuple[Float[Array, "rows vocab"], PyTree]:
        """Returns the logits to draw from, and the states of the parts after them."""
        weights, values = jnp.split(weights, [len(logits)], axis=1)
        states = list(state or (None,) * len(self.parts))
        place, rule = len(self.weighing), self.combination
        combination: Rule = partial(rule.function, **rule.of(values)) if rule.dials else rule.function

        def combine(weights: Array) -> tuple[Array, PyTree]:
            return apply_rule(combination, logits, weights, states[place], context)

        of_words = logits[:-1] if self.takes_values else logits
        step = Step(of_words, context, lambda weights: combine(weights)[0], weights)
        for number, part in enumerate(self.weighing):
            found = part.function(weights, step, **_state(part, states[number]), **part.of(values))
            weights, states[number] = found if _has_state(part) else (found, None)
            step = step._replace(weights=weights)
        mixed, states[place] = combine(weights)
        for part in self.keeping:
            mixed = part.function(mixed, step, **part.of(values))
        return mixed, tuple(states) if self.initial_state else None


def _has_state(part: _Bound) -> bool:
    return hasattr(part.function, "initial_state")


def _state(part: _Bound, state: PyTree) -> dict[str, PyTree]:
    return {"state": state} if _has_state(part) else {}


def compose(parts: Sequence[tuple[Part, Callable]], name: str) -> Composed:
    """Returns the rule of parts and their functions; without one that combines logits, they are mixed."""
    bound: dict[str, list[_Bound]] = {"weighs": [], "combines": [], "keeps": []}
    dials: list[float] = []
    for part, function in parts:
        bound[part.entry.kind].append(_Bound(function, tuple(part.dials), len(dials)))
        dials += part.dials.values()
    combination = bound["combines"] or [_Bound(linear_rule, (), 0)]
    return Composed(tuple(bound["weighs"]), combination[0], tuple(bound["keeps"]), name, tuple(dials))
