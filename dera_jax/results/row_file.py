"""Files of rows: what a row is, what tells rows apart, lines to rows and back, appending whole lines only."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from dera_jax.common.files import read_bytes
from dera_jax.common.locks import lock_file, unlock
from dera_jax.common.shown import shown
from dera_jax.results.rows import KEY_FIELDS, parse_rows


def part_path(run: Path, process: int) -> Path:
    """Returns the file that one of several processes writes its rows to."""
    return run / f"rows-{process}.jsonl"


def part_paths(run: Path) -> list[Path]:
    """Returns the files of single processes that a run has, in the order of the processes."""
    found = {path: re.fullmatch(r"rows-(\d+)\.jsonl", path.name) for path in run.iterdir()}
    return sorted((p for p, match in found.items() if match), key=lambda p: int(found[p][1]))


class RowFile:
    """A file open for rows to be added, whole or not at all.

    Attributes:
      rows: those it had when it was opened.
    """

    def __init__(self, path: Path, *, alone: bool = False, needed: Collection[str] = KEY_FIELDS):
        """Opens the file, made if missing, and reads it; nothing that it holds is changed.

        Args:
          alone: refuse a file that another process has opened so, until it closes it or ends.
          needed: fields that no row may lack.

        Raises:
          ValueError: a row is broken; another process has the file.
          OSError: it cannot be opened or written to.
        """
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if alone:
                lock_file(self._file, path)
            data = read_bytes(path)
            self.rows, self._length = parse_rows(data, path, needed)
        except BaseException:
            self.close()
            raise
        self._torn = self._length < len(data)
        self._unended = not self._torn and bool(data) and not data.endswith(b"\n")

    def repair(self) -> None:
        """Cuts off a torn last line; `append` does so by itself."""
        if self._torn:
            os.ftruncate(self._file, self._length)
        elif self._unended:  # torn just before the end of the line: the row is whole
            _write_all(self._file, b"\n")
        self._torn = self._unended = False

    def append(self, lines: bytes) -> None:
        """Adds lines of `encode_rows`, all of them or none, and returns when they are on disk.

        Raises:
          ValueError: they cannot be written (disk full).
        """
        self.repair()
        length = os.fstat(self._file).st_size
        try:
            _write_all(self._file, lines)
            os.fsync(self._file)
        except BaseException as error:
            os.ftruncate(self._file, length)
            if isinstance(error, OSError):
                raise ValueError(
                    f"cannot write {shown(self.path, 200)}: {error.strerror}; "
                    "rows so far are kept; rerun the command to complete them"
                ) from None
            raise

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self._file >= 0:
            unlock(self._file)
        self._file = -1


def _write_all(file: int, data: bytes) -> None:
    while data:
        # A nearly full disk takes a part and raises at the next call.
        data = data[os.write(file, data) :]
