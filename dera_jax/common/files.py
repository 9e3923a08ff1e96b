"""Files, written whole or not at all and read strictly; failures are one line.

What is read may come from anybody: only ordinary files are opened, and JSON is held to a schema, so that
no value of an unexpected type goes on into the code.
"""

import errno
import fcntl
import gzip
import json
import lzma
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from dera_jax.shown import shown

LARGEST_JSON = 2**28
"""Bytes of a JSON document, at most; rows and records are read line by line."""

DEEPEST_JSON = 100
"""Levels of lists and objects in each other, so that what was read can be written again."""


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      ValueError: the file cannot be written (disk full, no such folder, no permission), or a pipe or a device
        lies there, which a new file would remove.
    """
    path = Path(path)
    check_place(path)
    temporary = temporary_path(path)
    try:
        # A name that nobody can foresee, and never through a link that lies there.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"cannot write {shown(path, 200)}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raises ValueError where a file is to be written and a pipe or a device lies, such as /dev/null."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing there, or what cannot be written for a reason that writing tells
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"cannot write {shown(path, 200)}: expected a file, found a pipe or a device")


def open_to_append(path: Path) -> BinaryIO:
    """Returns an ordinary file open at its end, made if missing; a link to another place is not followed.

    Raises:
      ValueError: it cannot be opened, or is something else.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        # Opening a pipe would wait for somebody to read it.
        file = os.open(path, flags, 0o666)
    except OSError as error:
        found = {errno.ELOOP: "expected a file, found a link", errno.ENXIO: "expected a file, found a pipe"}
        told = found.get(error.errno, error.strerror)
        raise ValueError(f"cannot write {shown(path, 200)}: {told}") from None
    opened = os.fdopen(file, "ab")
    if not stat.S_ISREG(os.fstat(file).st_mode):
        opened.close()
        raise ValueError(f"cannot write {shown(path, 200)}: expected a file, found a pipe or a device")
    return opened


def temporary_path(path: Path) -> Path:
    """Returns where a file is written before it takes its name; `remove_leftovers` knows such names."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]+\.tmp|model(-\d+-of-\d+)?\.partial")
"""Also as older versions named weights that they were writing."""


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left of files that they were writing. The folder is locked."""
    for path in leftovers(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Returns what killed processes have left in a folder, or running ones are writing."""
    return [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name)] if folder.is_dir() else []


@contextmanager
def staging(folder: Path, name: str) -> Iterator[Path]:
    """Yields an empty folder in `folder`, for files that a library writes; `put` gives them their places.

    Args:
      name: of the main file, for the folder's own.

    Raises:
      ValueError: it cannot be made, or what happens in it raises OSError.
    """
    place = temporary_path(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place.mkdir()
        yield place
    except OSError as error:
        raise ValueError(f"{shown(folder, 200)}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def put(written: Path, folder: Path) -> None:
    """Moves a whole file out of its `staging` folder into `folder`, with the rights that the umask says."""
    # Libraries may make files for their owner alone; the folder was made as the umask says.
    written.chmod(written.parent.stat().st_mode & 0o666)
    file = os.open(written, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    folder.mkdir(exist_ok=True)
    os.replace(written, folder / written.name)


def make_folder(path: str | Path) -> None:
    """Makes a folder and those above it, if they are not there.

    Raises:
      ValueError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {shown(path, 200)}: {error.strerror}") from None


def lock_folder(folder: Path) -> int:
    """Returns the descriptor of FOLDER/.lock; until `unlock`, or this process ends, no other has it.

    Raises:
      ValueError: another process has it, or it is no ordinary file.
    """
    # The file stays: removing it would let a third process lock a new one beside the old.
    try:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ValueError(f"cannot lock {shown(folder, 200)}: {error.strerror}") from None
    try:
        lock_file(lock, folder)
    except ValueError:
        os.close(lock)
        raise
    return lock


_locked: set[int] = set()
"""Descriptors of files that this process has locked."""


def lock_file(file: int, name: Path) -> None:
    """Locks an open file until `unlock`.

    Raises:
      ValueError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is writing to {shown(name, 200)}{_holder(file)}") from None
    _locked.add(file)


def _holder(file: int) -> str:
    """Returns which process has an open file locked, as far as Linux tells."""
    try:
        inode = os.fstat(file).st_ino
        lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return ""
    found = [line[4] for line in lines if line[1] == "FLOCK" and line[5].endswith(f":{inode}")]
    return f" (process {found[0]})" if found and found[0].isdigit() and int(found[0]) > 0 else ""


def check_free(folder: Path) -> None:
    """Raises ValueError where another process has a folder locked; makes nothing."""
    if (folder / ".lock").is_file():
        unlock(lock_folder(folder))


def unlock(file: int) -> None:
    """Closes a file that may be locked."""
    _locked.discard(file)
    os.close(file)


def _leave_locks() -> None:
    """Closes, in a forked process, the copies of locked files: a lock lives as long as any copy does."""
    while _locked:
        os.close(_locked.pop())


os.register_at_fork(after_in_child=_leave_locks)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all, as `write_bytes` does."""
    write_bytes(path, text.encode())


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


OPENERS = {".gz": gzip.open, ".xz": lzma.open}
"""What opens files of compressed names."""


def open_file(path: Path) -> BinaryIO:
    """Returns an ordinary file open for reading; a pipe or a device would never end.

    Raises:
      ValueError: there is none, it cannot be read, or it is something else.
    """
    try:
        # Opening a pipe would wait for somebody to write to it.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"cannot read {shown(path, 200)}: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"cannot read {shown(path, 200)}: expected a file, found a pipe or a device")
    return file


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Returns a file's bytes, uncompressed if its name ends with .gz or .xz.

    Args:
      limit: bytes that it may hold.

    Raises:
      ValueError: it cannot be read, is no ordinary file, is longer, or is compressed and damaged.
    """
    try:
        with open_file(path) as file, OPENERS.get(path.suffix, _as_it_is)(file) as opened:
            data = opened.read(-1 if limit is None else limit + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        message = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {shown(path, 200)}: {message}") from None
    if limit is not None and len(data) > limit:
        raise ValueError(f"{shown(path, 200)}: expected at most {limit >> 20} MiB")
    return data


def _as_it_is(file: BinaryIO) -> BinaryIO:
    return file
