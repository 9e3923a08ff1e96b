"""Files, written whole or not at all and read strictly; failures are one line."""

import fcntl
import gzip
import json
import lzma
import os
import zlib
from pathlib import Path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      ValueError: the file cannot be written (disk full, no such folder, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | Path) -> None:
    """Makes a folder and those above it, if they are not there.

    Raises:
      ValueError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {path}: {error.strerror}") from None


def lock_folder(folder: Path) -> int:
    """Returns the descriptor of FOLDER/.lock; until it is closed, or this process ends, no other has it.

    Raises:
      ValueError: another process has it.
    """
    # The file stays: removing it would let a third process lock a new one beside the old.
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(f"another run is writing to {folder}") from None
    return lock


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, obj) -> None:
    """Writes indented JSON whole or not at all, as `write_bytes` does."""
    write_bytes(path, encode_json(obj, indent=2) + b"\n")


def read_json(path: str | Path):
    """Returns what a JSON file holds.

    Raises:
      ValueError: the file cannot be read, or is not JSON.
    """
    data = read_bytes(Path(path))
    try:
        return decode_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def encode_json(obj, indent: int | None = None) -> bytes:
    """Returns strict JSON in UTF-8."""
    text = json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=indent)
    # Half of a surrogate pair has no UTF-8; the replacement, \ud800, is its JSON escape.
    return text.encode("utf-8", "backslashreplace")


def decode_json(data: bytes):
    """Returns what strict JSON says."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(data, parse_constant=refuse)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{error.msg} at {line}column {error.colno}") from None


OPENERS = {".gz": gzip.open, ".xz": lzma.open}
"""What opens files of compressed names."""


def read_bytes(path: Path) -> bytes:
    """Returns a file's bytes, uncompressed if its name ends with .gz or .xz."""
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
