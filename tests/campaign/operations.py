"""Counts the file operations of this process below a folder, and ends it, SIGKILL, at one of them."""

import builtins
import io
import os
import signal
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path

MOMENTS = ("before", "half", "after")
"""Of an operation; `half` is there for writes alone: half of the bytes are in the file."""
PATHS = {
    "open": 0, "mkdir": 0, "rmdir": 0, "unlink": 0, "remove": 0, "truncate": 0, "chmod": 0, "rename": 1, "replace": 1,
    "symlink": 1, "link": 1,
}  # fmt: skip
"""Functions of `os` that are told a path, and which argument it is."""
FILES = (
    "write",
    "pwrite",
    "writev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fchmod",
    "sendfile",
    "copy_file_range",
)
"""Functions of `os` that are told a file."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Operations:
    """The operations of this process, once `watch` is called."""

    def __init__(self, folder: Path, log: Path, number: int = 0, moment: str = "before"):
        """Nothing is watched yet.

        Args:
          folder: whose files count.
          log: gets a line for each operation.
          number: of the operation at which to die, from 1; 0 is none.
          moment: of it.
        """
        self.folder, self.number, self.moment = os.path.realpath(folder), number, moment
        self.count = 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._lock, self._inside = threading.Lock(), threading.local()
        self._write = os.write

    def watch(self) -> None:
        """Replaces the functions of this process that change files."""
        for name in (*PATHS, *FILES):
            if hasattr(os, name):
                setattr(os, name, self._watched(getattr(os, name), name))
        builtins.open = io.open = self._watched_open(io.open)
        self._watch_weights()

    def _watch_weights(self) -> None:
        # Written by Rust, which calls no function of `os`.
        import safetensors.numpy

        serialize = safetensors.numpy.serialize_file

        def save(tensors, filename, *rest, **more):
            def half():
                serialize(tensors, filename, *rest, **more)
                with open(filename, "r+b") as file:
                    file.truncate(Path(filename).stat().st_size // 2)

            return self._at("save", filename, lambda: serialize(tensors, filename, *rest, **more), half)

        safetensors.numpy.serialize_file = save

    def _watched(self, function: Callable, name: str) -> Callable:
        @wraps(function)
        def act(*args, **kwargs):
            path = self._path(name, args, kwargs)
            if path is None:
                return function(*args, **kwargs)
            half = (
                (lambda: function(args[0], bytes(args[1])[: len(args[1]) // 2])) if name == "write" else None
            )
            return self._at(name, path, lambda: function(*args, **kwargs), half)

        return act

    def _watched_open(self, function: Callable) -> Callable:
        @wraps(function)
        def act(file, mode="r", *args, **kwargs):
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            if not writes or isinstance(file, int) or not self._counts(file):
                return function(file, mode, *args, **kwargs)
            return self._at("open", file, lambda: function(file, mode, *args, **kwargs))

        return act

    def _path(self, name: str, args: tuple, kwargs: dict) -> str | None:
        """Returns the path of an operation that counts."""
        if getattr(self._inside, "deep", False) or not args:
            return None
        if name == "open" and not (args[1] if len(args) > 1 else kwargs.get("flags", 0)) & WRITING:
            return None
        given = args[0] if name in FILES else args[PATHS[name]]
        base = kwargs.get("dst_dir_fd" if name in ("rename", "replace") else "dir_fd")
        try:
            path = os.readlink(f"/proc/self/fd/{given}") if isinstance(given, int) else os.fsdecode(given)
            if base is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{base}"), path)
        except (OSError, TypeError, ValueError):
            return None
        return path if self._counts(path) else None

    def _counts(self, path) -> bool:
        try:
            whole = os.path.join(
                os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path)
            )
        except (OSError, TypeError, ValueError):
            return False
        return whole == self.folder or whole.startswith(f"{self.folder}/")

    def _at(self, name: str, path, act: Callable, half: Callable | None = None):
        if getattr(self._inside, "deep", False):
            return act()
        with self._lock:
            self.count += 1
            number = self.count
            self._write(self._log, f"{name} {os.path.relpath(path, self.folder)}\n".encode())
        if number == self.number and self.moment == "half" and half:
            self._inside.deep = True
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.number and self.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        self._inside.deep = True  # what an operation calls is the same operation
        try:
            return act()
        finally:
            self._inside.deep = False
            if number == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
