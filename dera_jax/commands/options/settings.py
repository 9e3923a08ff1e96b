"""Options that are made from the settings of a dataclass, and settings that are read from the options."""

import argparse
import typing
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, TypeVar

from dera_jax.commands.options import cli

Config = TypeVar("Config")
Help = Mapping[str, tuple[str | None, str]]
"""By setting: what stands for its value, if it is not a choice, and what it is."""


def add_settings(
    group: Any, config: type | tuple[type, ...], help: Help, leave_out: Collection[str] = (), **defaults
) -> None:
    """Adds an option for each setting in `help`, in that order; name, type, default and choices are the field's.

    A flag is False without its option. An option for several texts may be repeated. Where a setting may be None
    and is not by default, its option takes the word none.

    Args:
      group: a parser, or a group of its options.
      config: the dataclass, or several that share the group.
      leave_out: settings without an option here; all others are in `help`.
      defaults: other ones than the fields'.

    Raises:
      ValueError: a setting that is neither explained nor left out, or both.
    """
    declared = {field.name: field for one in _each(config) for field in fields(one)}
    kinds = {name: kind for one in _each(config) for name, kind in typing.get_type_hints(one).items()}
    if unclear := help.keys() ^ (declared.keys() - set(leave_out)):
        raise ValueError(f"neither explained nor left out, or both: {sorted(unclear)}")
    for name, (metavar, text) in help.items():
        default = defaults.get(name, declared[name].default)
        shape = _shape(declared[name], kinds[name], default)
        if metavar is not None:
            shape["metavar"] = metavar
        group.add_argument(cli.option(name), help=text, **shape)


def read_settings(args: argparse.Namespace, config: type[Config], **given) -> Config:
    """Returns the dataclass with the settings that the options have; those that are given come first.

    Raises:
      ValueError: a value that the dataclass refuses.
    """
    return config(**{**values_of(args, config, leave_out=given), **given})


def values_of(args: argparse.Namespace, config: type, leave_out: Collection[str] = ()) -> dict:
    """Returns the settings of a dataclass that the options have, by name.

    Raises:
      ValueError: neither a number nor the word none.
    """
    kinds, found = typing.get_type_hints(config), {}
    for field in fields(config):
        if field.name in leave_out or not hasattr(args, field.name):
            continue
        value = getattr(args, field.name)
        if _takes_none(kinds[field.name], field.default):
            found[field.name] = _number_or_none(field.name, value, _plain(kinds[field.name]))
        elif value is not None or field.default_factory is MISSING:
            found[field.name] = tuple(value) if isinstance(value, list) else value
    return found


def _shape(field: Field, kind: Any, default: Any) -> dict:
    """Returns what argparse is told of an option, but for its name, metavar and help."""
    if kind is bool:
        return {"action": "store_true"}
    if tuple in map(typing.get_origin, _members(kind)):
        return {"action": "append", "default": []}
    if _takes_none(kind, default):
        return {"default": f"{default:g}" if isinstance(default, float) else str(default)}
    return {
        "type": _plain(kind),
        "default": None if default is MISSING else default,
        "choices": field.metadata.get("choices"),
    }


def _takes_none(kind: Any, default: Any) -> bool:
    return type(None) in _members(kind) and default is not None and default is not MISSING


def _plain(kind: Any) -> type:
    """Returns the type of the values that are not None."""
    return next(member for member in _members(kind) if member is not type(None))


def _members(kind: Any) -> tuple:
    return typing.get_args(kind) if typing.get_origin(kind) is UnionType else (kind,)


def _number_or_none(name: str, text: str, kind: type) -> Any:
    if text == "none":
        return None
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{cli.option(name)}: expected a number or none, found {text!r}") from None


def _each(config: type | tuple[type, ...]) -> tuple[type, ...]:
    return config if isinstance(config, tuple) else (config,)
