"""Locks on folders and files, so that two processes do not write the same run."""

import fcntl
import os
from pathlib import Path

from dera_jax.common.shown import shown


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


def leave_locks() -> None:
    """Closes, in a forked process, the copies of locked files: a lock lives as long as any copy does."""
    while _locked:
        os.close(_locked.pop())
