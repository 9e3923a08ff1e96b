"""A hash of a user's function, so that rows are not mixed with those of its former self.

It is that of the function's source, of all that it names in its own file, and of the plain values there; comments
and layout do not count. What it imports from other files does not either.
"""

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType

PLAIN = str, bytes, int, float, complex, bool, type(None), list, tuple, dict, set, frozenset
"""Values whose `repr` tells all of them, where their parts are such."""


def code_hash(function: Callable) -> str | None:
    """Returns a hash of a function or of a callable object; None where there is no source to read."""
    parts: dict[str, str] = {}
    _collect(function, parts)
    if not parts:
        return None
    told = "\n".join(f"{name}\n{text}" for name, text in sorted(parts.items()))
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _collect(value: object, parts: dict[str, str]) -> None:
    """Adds the source of a function or class, and what it names in its own file, to `parts` by name."""
    if isinstance(value, functools.partial):
        parts[f"arguments of {_name(value.func)}"] = repr((_plain(value.args), _plain(value.keywords)))
        return _collect(value.func, parts)
    value = inspect.unwrap(value) if callable(value) else value
    code = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    name = _name(code)
    if name in parts:
        return None
    try:
        source = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):
        return None
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a lambda amid a call
        parts[name] = source
        return None
    parts[name] = ast.dump(tree)
    module = inspect.getmodule(code)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for each in sorted(used & vars(module).keys()) if isinstance(module, ModuleType) else ():
        _collect_named(each, vars(module)[each], module, parts)
    return None


def _collect_named(name: str, value: object, module: ModuleType, parts: dict[str, str]) -> None:
    if isinstance(value, PLAIN):
        parts[f"value of {name}"] = repr(_plain(value))
    elif getattr(value, "__module__", None) == module.__name__ and callable(value):
        _collect(value, parts)


def _plain(value: object) -> object:
    """Returns a value as its `repr` is the same in every process: sets in order, objects as their type."""
    if isinstance(value, dict):
        return [(_plain(key), _plain(each)) for key, each in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, map(_plain, value)))
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, PLAIN) else type(value).__name__


def _name(value: object) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
