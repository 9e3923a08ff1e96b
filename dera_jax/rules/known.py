"""Rules by the names that users write: short ones of the rules here, `module:function` of their own."""

from collections.abc import Callable
from typing import NamedTuple

from dera_jax.common.user_code import load_function

KNOWN = {"linear": "dera_jax.rules.rule:linear_rule"}
"""Names that options take and rows carry."""
EARLIER = {"dera_jax.realign:linear_rule": "linear"}
"""What commands written by earlier versions call them."""


class NamedRule(NamedTuple):
    """A rule and what rows call it."""

    function: Callable
    """A `rules.rule.Rule`."""
    name: str
    """One of `KNOWN`, or module:function."""


def load_rule(spec: str | None) -> NamedRule:
    """Returns the rule that `spec` names; None is the mixture.

    Args:
      spec: a name of `KNOWN`, or `module:function` of the user's.

    Raises:
      ValueError: no such module or function.
    """
    name = EARLIER.get(spec or "linear", spec or "linear")
    for known, place in KNOWN.items():
        if name in (known, place):
            return NamedRule(load_function(place, f"--rule={known}"), known)
    return NamedRule(load_function(name, f"--rule={name}"), name)
