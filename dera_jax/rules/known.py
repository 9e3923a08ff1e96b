"""Rules by the names that users write: short ones of the rules here, `module:function` of their own."""

from collections.abc import Callable
from typing import NamedTuple

from dera_jax.common.shown import shown
from dera_jax.common.user_code import load_function

KNOWN = {"linear": "dera_jax.rules.rule:linear_rule", "tilt": "dera_jax.rules.tilt:tilt"}
"""Names that options take and rows carry."""
EARLIER = {"dera_jax.realign:linear_rule": "linear"}
"""What commands written by earlier versions call them."""


class NamedRule(NamedTuple):
    """A rule and what rows call it."""

    function: Callable
    """A `rules.rule.Rule`."""
    name: str
    """One of `KNOWN`, or module:function."""


def known_name(spec: str) -> str | None:
    """Returns the name of the rule of this package that `spec` names, None where it is another's code.

    >>> known_name("dera_jax.realign:linear_rule")
    'linear'
    """
    places = {place: name for name, place in KNOWN.items()}
    return spec if spec in KNOWN else EARLIER.get(spec, places.get(spec))


def load_rule(spec: str | None) -> NamedRule:
    """Returns the rule that `spec` names; None is the mixture.

    Args:
      spec: a name of `KNOWN`, or `module:function` of the user's.

    Raises:
      ValueError: no such rule, module or function.
    """
    spec = spec or "linear"
    if name := known_name(spec):
        return NamedRule(load_function(KNOWN[name], f"--rule={name}"), name)
    if ":" not in spec:
        expected = f"{', '.join(KNOWN)} or module:function"
        raise ValueError(f"--rule={shown(spec, 80)}: expected {expected}")
    return NamedRule(load_function(spec, f"--rule={spec}"), spec)
