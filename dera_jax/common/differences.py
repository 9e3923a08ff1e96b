"""What differs between two manifests, however deep it lies."""

from collections.abc import Collection, Mapping
from typing import NamedTuple


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""The value of what is not there."""


class Difference(NamedTuple):
    """A field that is not the same in two manifests."""

    name: str
    """Of nested fields all names, with dots between them."""
    there: object
    here: object


def differences(
    there: Mapping, here: Mapping, leave_out: Collection[str] = (), absent: object = ABSENT
) -> list[Difference]:
    """Returns the fields whose values are not the same, in the order in which the two name them.

    >>> differences({"seed": 0, "decode": {"top_k": 5}}, {"seed": 0, "decode": {"top_k": 7}})
    [Difference(name='decode.top_k', there=5, here=7)]

    Args:
      leave_out: outermost names that may differ.
      absent: the value of a field that only one of the two has.
    """
    there, here = (flat({k: v for k, v in one.items() if k not in leave_out}) for one in (there, here))
    values = ((name, there.get(name, absent), here.get(name, absent)) for name in {**there, **here})
    return [Difference(*each) for each in values if each[1] != each[2]]


def flat(tree: Mapping, prefix: str = "") -> dict:
    """Returns nested fields as one dict.

    >>> flat({"a": {"b": 1}, "c": {}})
    {'a.b': 1, 'c': {}}
    """
    found = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found
