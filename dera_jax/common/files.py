"""Files, written whole or not at all and read strictly; failures are one line.

What is read may come from anybody: only ordinary files are opened, and JSON is held to a schema, so that
no value of an unexpected type goes on into the code.
"""

import errno
import gzip
import lzma
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dera_jax.common.locks import leave_locks
from dera_jax.common.shown import shown

ASSETS = Path(__file__).parents[1] / "assets"
"""What is shipped: the toy pair, prompts."""


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


os.register_at_fork(after_in_child=leave_locks)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all, as `write_bytes` does."""
    write_bytes(path, text.encode())


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
