"""Every state of the disk that a kill can leave, for tests of what the same command makes of it.

`Watch` calls back before and after every operation on files that Python code makes, in all threads.
`record` looks at a folder then, and whatever native code (safetensors, orbax) has done in between shows as
well. Where an operation has added to a file, the state with half of it added is one more.

`python -m tests.support.crash_states WHERE NUMBER MODULE ARGUMENTS…` runs a command that is really killed, before
the NUMBERth operation whose description ends with WHERE.
"""

import errno
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

OPERATIONS = (
    "open", "write", "pwrite", "truncate", "ftruncate", "fsync", "fdatasync", "replace", "rename", "unlink",
    "remove", "rmdir", "mkdir", "chmod", "fchmod", "link", "symlink",
)  # fmt: skip
"""Of the module `os`; those of open files come on top."""
NEED_SPACE = ("open", "write", "pwrite", "fsync", "mkdir", "replace", "rename")
"""Operations that a full disk makes fail."""
UNREAD = re.compile(r"(?:^|(?<=/))(?:\.[^/]+\.[0-9a-f]+\.tmp|\d+\.(?:saving|gone))(?=/|$)")
"""Files and folders that are removed by their names, whatever is in them."""

OF_ANOTHER_RUN = re.compile(UNREAD.pattern + r"|^checkpoints/\d+/(?:state|record\.json)(?=/|$)")
"""The same, and what two runs write alike in no byte: orbax's files have names drawn by lot."""

Snapshot = dict[str, bytes | None]
"""Contents of a folder by path; None is a folder."""


class State(NamedTuple):
    """What a kill at an operation leaves."""

    told: str
    """When."""
    folder: Snapshot


class Watch(AbstractContextManager):
    """While it is entered, operations on files are told to `before` and `after`, one at a time."""

    def __init__(self, before: Callable[[str], None], after: Callable[[str], None] = lambda told: None):
        self.before, self.after = before, after
        self._lock, self._inside = threading.RLock(), threading.local()
        self._real = {name: getattr(os, name) for name in OPERATIONS} | {"io": io.open}

    def __enter__(self) -> "Watch":
        for name in OPERATIONS:
            setattr(os, name, partial(self.call, name, self._real[name]))
        io.open = _opener(self, self._real["io"])
        sys.modules["builtins"].open = io.open
        return self

    def __exit__(self, *_) -> None:
        for name in OPERATIONS:
            setattr(os, name, self._real[name])
        io.open = sys.modules["builtins"].open = self._real["io"]

    def call(self, name: str, real: Callable, *args, **kwargs):
        """Makes an operation, and tells of it before and after."""
        if getattr(self._inside, "it", False):  # of the one who is told
            return real(*args, **kwargs)
        with self._lock:
            told = _words(name, args)
            self._tell(self.before, told)
            try:
                return real(*args, **kwargs)
            finally:
                self._tell(self.after, told)

    def _tell(self, whom: Callable[[str], None], told: str) -> None:
        self._inside.it = True
        try:
            whom(told)
        finally:
            self._inside.it = False


def _words(name: str, args: tuple) -> str:
    """Returns an operation and the file that it is done to."""
    file = args[-1] if name in ("replace", "rename") else args[0]
    if isinstance(file, int) and Path(f"/proc/self/fd/{file}").exists():
        file = os.readlink(f"/proc/self/fd/{file}")
    if name == "open" and len(args) > 1 and not args[1] & os.O_CREAT:
        name = "reopen"
    return f"{name} {file}"


def _opener(watch: Watch, real: Callable) -> Callable:
    """Returns an `open` whose files for writing tell of what reaches the disk."""

    class Raw(io.FileIO):
        def __init__(self, file, *args, **kwargs):
            self.told = str(file)
            watch.call("open", lambda _: super(Raw, self).__init__(file, *args, **kwargs), file)

        def write(self, data):
            return watch.call("write", lambda _: super(Raw, self).write(data), self.told)

        def truncate(self, size=None):
            return watch.call("truncate", lambda _: super(Raw, self).truncate(size), self.told)

    def opened(
        file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
    ):
        plain = isinstance(file, str | bytes | os.PathLike) and opener is None
        if not plain or not set(mode) & set("wax") or "+" in mode or buffering == 0:
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        binary = io.BufferedWriter(Raw(os.fspath(file), mode.replace("b", "").replace("t", "")))
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    return opened


def snapshot(folder: Path) -> Snapshot:
    """Returns what is in a folder now; what vanishes meanwhile is not."""
    found: Snapshot = {}
    for place, folders, files in os.walk(folder):
        base = Path(place).relative_to(folder)
        found |= {str(base / name): None for name in folders}
        for name in files:
            try:
                found[str(base / name)] = Path(place, name).read_bytes()
            except FileNotFoundError:
                continue
    return found


def lay(state: Snapshot, folder: Path) -> None:
    """Makes a folder hold what a snapshot says, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, data in sorted(state.items()):
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_bytes(data)


def key(state: Snapshot, unread: re.Pattern = UNREAD) -> frozenset:
    """Returns what tells states apart: not the contents of what is removed unread, nor names drawn by lot."""
    told = set()
    for path, data in state.items():
        found = unread.search(path)
        short = path[: found.end()] if found else path
        name = re.sub(r"\.[0-9a-f]+\.tmp", ".tmp", short)
        told.add((name, None if found or data is None else hashlib.md5(plain(path, data)).digest()))
    return frozenset(told)


def plain(path: str, data: bytes) -> bytes:
    """Returns a file's bytes without times and the words of commands."""
    name = path.rpartition("/")[2]
    if name == "speed.jsonl":
        return b"\n" * data.count(b"\n") + (b"" if data.endswith(b"\n") else b".")
    if name in ("manifest.json", "record.json"):
        try:
            return json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
        except ValueError:
            return data
    return data


def _timeless(manifest: dict) -> dict:
    left_out = ("provenance", "seconds", "commands", "decode_seconds", "resources", "sha256", "files")
    manifest = {name: value for name, value in manifest.items() if name not in left_out}
    if "facts" in manifest:
        manifest["facts"] = {name: n for name, n in manifest["facts"].items() if name != "speed.jsonl"}
    if "evaluation" in manifest:
        manifest["evaluation"] = {n: v for n, v in manifest["evaluation"].items() if n != "eval_seconds"}
    return manifest


def record(folder: Path, act: Callable[[], None]) -> list[State]:
    """Returns the distinct states of a folder before, in and after every operation while `act` runs."""
    found: dict[frozenset, State] = {}
    last = [(snapshot(folder), _numbers(folder))]

    def look(when: str, told: str) -> None:
        now, numbers = snapshot(folder), _numbers(folder)
        before, known = last[0]
        for path, half in _halves(before, now).items():
            # A file that has come from another name had its contents before.
            if known.get(numbers.get(path), path) == path:
                found.setdefault(key(half), State(f"half of {path}", half))
        found.setdefault(key(now), State(f"{when} {told}", now))
        last[0] = now, numbers | {number: path for path, number in numbers.items()}

    look("at", "the start")
    with Watch(partial(look, "before"), partial(look, "after")):
        act()
    look("at", "the end")
    return list(found.values())


def _numbers(folder: Path) -> dict:
    """Returns the numbers (inodes) of the files in a folder, by path."""
    found = {}
    for path in folder.rglob("*"):
        try:
            found[str(path.relative_to(folder))] = path.stat().st_ino
        except FileNotFoundError:
            continue
    return found


def _halves(before: Snapshot, now: Snapshot) -> dict[str, Snapshot]:
    """Returns, for each file that has grown, the state before with half of what was added."""
    halves = {}
    for path, data in now.items():
        there = before.get(path) or b""
        added = len(data or b"") - len(there)
        if data and added > 1 and data.startswith(there) and not UNREAD.search(path):
            halves[path] = before | {path: data[: len(there) + added // 2]}
    return halves


class Full(Watch):
    """A disk that is full at the NUMBERth operation that needs space in a folder, and from then on."""

    def __init__(self, folder: Path, number: int):
        super().__init__(self._count)
        self.folder, self.left = str(folder), number

    def _count(self, told: str) -> None:
        name, _, path = told.partition(" ")
        if name in NEED_SPACE and path.startswith(self.folder):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def killed_at(where: str, number: int) -> Watch:
    """Returns what kills this process before the NUMBERth operation whose description ends with WHERE."""
    left = [number]

    def kill(told: str) -> None:
        left[0] -= told.endswith(where)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return Watch(kill)


if __name__ == "__main__":
    with killed_at(sys.argv[1], int(sys.argv[2])):
        importlib.import_module(sys.argv[3]).main(sys.argv[4:])
