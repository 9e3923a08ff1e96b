"""Rules by what users write: `linear`, `power:p=0.5`, several joined by `+`, `module:function` of their own."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from dera_jax.common.shown import shown
from dera_jax.common.user_code import load_function
from dera_jax.rules.catalogue import KNOWN, Entry

EARLIER = {"dera_jax.realign:linear_rule": "linear"}
"""What commands written by earlier versions call them."""
OWN = re.compile(r"[\w.]+:\w+")
"""How a user's own rule is written."""


class NamedRule(NamedTuple):
    """A rule and what rows call it."""

    function: Callable
    """A `rules.rule.Rule`."""
    name: str
    """As it is written, dials that were left out included; or module:function."""


class Part(NamedTuple):
    """One of the rules that a rule is made of."""

    name: str
    """Of `KNOWN`, or module:function."""
    dials: dict[str, float]
    """Every dial with its value."""

    @property
    def entry(self) -> Entry:
        """What is known of it; of a user's own, that it is a rule."""
        return KNOWN.get(self.name) or Entry(self.name, "combines", "", "", "")

    @property
    def text(self) -> str:
        """As users write it; a dial that is off is left out."""
        told = ",".join(f"{name}={value:.15g}" for name, value in self.dials.items() if math.isfinite(value))
        return f"{self.name}:{told}" if told else self.name


def parse(spec: str) -> list[Part]:
    """Returns the parts of a rule, in the order written.

    >>> [part.text for part in parse("plausible+power:p=-1")]
    ['plausible:alpha=0.1', 'power:p=-1']

    Raises:
      ValueError: a name or a dial that is not known or is out of range, or two parts that combine logits.
    """
    parts = [_part(text, spec) for text in spec.split("+")]
    combining = [part.name for part in parts if part.entry.kind == "combines"]
    if len(combining) > 1:
        raise _refused(spec, f"expected one rule that combines logits, found {' and '.join(combining)}")
    names = [part.name for part in parts]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise _refused(spec, f"expected each rule once, found {repeated[0]} twice")
    return parts


def known_name(spec: str) -> str | None:
    """Returns the name of the rule of this package that `spec` names, None where it is another's code.

    >>> known_name("dera_jax.realign:linear_rule"), known_name("first+plausible")
    ('linear', 'first:tokens=5+plausible:alpha=0.1')
    """
    places = {entry.place: name for name, entry in KNOWN.items()}
    spec = EARLIER.get(spec, places.get(spec, spec))
    try:
        parts = parse(spec)
    except ValueError:
        return None
    return "+".join(part.text for part in parts) if all(part.name in KNOWN for part in parts) else None


def load_rule(spec: str | None) -> NamedRule:
    """Returns the rule that `spec` names; None is the mixture.

    Args:
      spec: names of `KNOWN` with their dials, `NAME:key=value,…`, or `module:function` of the user's; several are
        joined by `+`.

    Raises:
      ValueError: no such rule, dial, module or function.
    """
    spec = spec or "linear"
    places = {entry.place: name for name, entry in KNOWN.items()}
    parts = parse(EARLIER.get(spec, places.get(spec, spec)))
    loaded = [load_function(_place(part), f"--rule={part.name}") for part in parts]
    name = "+".join(part.text for part in parts)
    if len(parts) == 1 and parts[0].entry.kind == "combines" and not parts[0].dials:
        return NamedRule(loaded[0], name)
    from dera_jax.rules.composed import compose

    return NamedRule(compose(list(zip(parts, loaded, strict=True)), name), name)


def with_dial(spec: str | None, name: str, text: str) -> str:
    """Returns a rule with another value of a dial: `DIAL`, or `RULE.DIAL` where several of its parts have one.

    >>> with_dial("plausible+power", "alpha", "0.3"), with_dial("first+ramp", "ramp.tokens", "4")
    ('plausible:alpha=0.3+power:p=1', 'first:tokens=5+ramp:tokens=4')

    Raises:
      ValueError: no part has it, several have, `spec` itself has a value of it, or this one is out of its range.
    """
    spec = spec or "linear"
    parts = parse(spec)
    dials = [f"{part.name}.{dial}" for part in parts for dial in part.dials]
    found = [dial for dial in dials if name in (dial, dial.partition(".")[2])]
    if len(found) != 1:
        known = ", ".join(found or dials) or "none, in a rule without dials (--rule=list prints those with)"
        raise ValueError(
            f"--sweep: expected a dial of --rule={shown(spec, 60)}, {known}; found {shown(name, 60)}"
        )
    owner, _, dial = found[0].partition(".")
    for part, written in zip(parts, spec.split("+"), strict=True):
        if part.name == owner:
            if re.search(rf"[:,]{re.escape(dial)}=", written):
                raise ValueError(
                    f"--sweep={shown(name, 60)}: expected no value of it in --rule, found {shown(written, 60)}"
                )
            part.dials[dial] = part.entry.dial(dial).value(text, f"--sweep={shown(name, 60)}")
    return "+".join(part.text for part in parts)


def _place(part: Part) -> str:
    return KNOWN[part.name].place if part.name in KNOWN else part.name


def _part(text: str, spec: str) -> Part:
    name, colon, told = text.partition(":")
    # A module of the user's may be called like a rule.
    if OWN.fullmatch(text) and not (name in KNOWN and told in [dial.name for dial in KNOWN[name].dials]):
        return Part(text, {})
    if name not in KNOWN:
        raise _refused(spec, f"expected {', '.join(KNOWN)} or module:function, found {shown(text, 60)}")
    entry = KNOWN[name]
    values = {dial.name: dial.default for dial in entry.dials}
    given: set[str] = set()
    for item in told.split(",") if colon else ():
        key, equals, number = item.partition("=")
        if not equals or key not in values:
            known = ", ".join(f"{dial}=" for dial in values) or "no dials"
            raise _refused(spec, f"{name}: expected {known}, found {shown(item, 60)}")
        if key in given:
            raise _refused(spec, f"{name}: expected {key} once, found it twice")
        given.add(key)
        values[key] = entry.dial(key).value(number, f"--rule={shown(spec, 80)}: {name}")
    return Part(name, values)


def _refused(spec: str, why: str) -> ValueError:
    return ValueError(f"--rule={shown(spec, 80)}: {why}")
