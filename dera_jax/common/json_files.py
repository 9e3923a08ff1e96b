"""JSON, held to a schema when it is read and finite when it is written."""

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from dera_jax.common.files import read_bytes, write_bytes
from dera_jax.common.shown import shown

LARGEST_JSON = 2**28
"""Bytes of a JSON document, at most; rows and records are read line by line."""
DEEPEST_JSON = 100
"""Levels of lists and objects in each other, so that what was read can be written again."""


def write_json(path: str | Path, obj) -> None:
    """Writes indented JSON whole or not at all, as `write_bytes` does."""
    write_bytes(path, encode_json(obj, indent=2) + b"\n")


def read_json(path: str | Path, schema: Any = Any) -> Any:
    """Returns what a JSON file holds.

    Args:
      schema: type that the value must have, as of `check_type`.

    Raises:
      ValueError: the file cannot be read, is not JSON, or holds something else than the schema says.
    """
    path = Path(path)
    data = read_bytes(path, LARGEST_JSON)
    try:
        value = decode_json(data)
    except ValueError as error:
        raise ValueError(f"{shown(path, 200)}: not JSON: {error}") from None
    try:
        check_type(value, schema)
    except ValueError as error:
        raise ValueError(f"{shown(path, 200)}: {error}") from None
    return value


def read_object(path: Path, schema: Any = dict) -> dict:
    """Returns the JSON object that a file holds; an empty one where there is no file.

    Raises:
      ValueError: as `read_json`.
    """
    return read_json(path, schema) if path.exists() else {}


def encode_json(obj, indent: int | None = None) -> bytes:
    """Returns strict JSON in UTF-8."""
    text = json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=indent)
    # Half of a surrogate pair has no UTF-8; the replacement, \ud800, is its JSON escape.
    return text.encode("utf-8", "backslashreplace")


def decode_json(data: bytes):
    """Returns what strict JSON says.

    Raises:
      ValueError: it is not JSON, nested too deeply, or holds a number that no float can be.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(why_no_json(error)) from None
    check_nesting(data, value)
    return value


def why_no_json(error: ValueError | RecursionError) -> str:
    """Returns what `json.loads` has against a text, with the place in it.

    >>> try:
    ...     json.loads('{"a": "b')
    ... except ValueError as error:
    ...     why_no_json(error)
    'Unterminated string starting at column 7'
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
    # Python's own advice is about one of its settings.
    return "a number has too many digits" if "integer string conversion" in str(error) else str(error)


def check_nesting(data: bytes, value: object) -> None:
    """Raises ValueError where `value`, decoded from `data`, has too many levels."""
    # Few brackets nest no deeper.
    if data.count(b"[") + data.count(b"{") > DEEPEST_JSON and _is_deeper(value, DEEPEST_JSON):
        raise ValueError("nested too deeply")


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    within = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in within)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.20} is beyond the largest number")
    return number


def check_type(value: object, schema: Any) -> None:
    """Raises ValueError where a decoded JSON value is not of a type; names the place in it.

    Args:
      schema: a type that msgspec knows: dict[str, float | None], a TypedDict, Annotated[int, Meta(ge=0)].
        Fields that a TypedDict does not name may hold anything. Numbers for float must be finite.

    >>> check_type({"a": {"b": ["c"]}}, dict[str, dict[str, list[int]]])
    Traceback (most recent call last):
    ValueError: at […][…][0]: expected a whole number, found a text
    """
    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise ValueError(_in_plain_words(error, value)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


_WORDS = {
    "object": "an object",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
"""What msgspec calls the types of JSON, and what people do."""


def _in_plain_words(error: msgspec.ValidationError, value: object) -> str:
    """Returns `Expected `int`, got `str` - at `$.a`` as `at a: expected a whole number, found a text`."""
    said, _, place = str(error).partition(" - at ")
    said = re.sub("`(.*?)`", lambda types: _named_types(types[1]), said)
    said = said[:1].lower() + said[1:].replace(", got ", ", found ")
    if ", found " not in said:  # a value of the right type, out of its range
        said += _found_at(value, place)
    place = place.strip("`").removeprefix("$").removeprefix(".").replace("[...]", "[…]")
    return f"at {place}: {said}" if place else said


def _found_at(value: object, place: str) -> str:
    """Returns `, found 0` for what stands at a place such as `$.a[0].b`; nothing where a name is not told."""
    if "[...]" in place:
        return ""
    for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", place):
        value = value[int(number)] if number else value[name]
    return f", found {shown(json.dumps(value), 40)}" if not isinstance(value, dict) else ""


def _named_types(text: str) -> str:
    return " or ".join(_WORDS.get(name, name) for name in text.split(" | "))
