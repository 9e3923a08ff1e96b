"""Files of rows: what tells rows apart, lines to rows and back, and appending whole lines only."""

import os
import re
from pathlib import Path

from dera_jax.files import decode_json, encode_json, lock_file, read_bytes, unlock
from dera_jax.strengths import format_strength, strength_from_json

KEY_FIELDS = ("prompt_id", "sample", "lambda")
"""What a file of rows must have to be one."""

RowKey = tuple[int | str, int, str, int]


def row_key(row: dict) -> RowKey:
    """Returns what tells a row from the others of its run: (prompt_id, sample, text of λ, turn)."""
    strength = format_strength(strength_from_json(row["lambda"]))
    return row["prompt_id"], row["sample"], strength, row.get("turn", 0)


def part_path(run: Path, process: int) -> Path:
    """Returns the file that one of several processes writes its rows to."""
    return run / f"rows-{process}.jsonl"


def part_paths(run: Path) -> list[Path]:
    """Returns the files of single processes that a run has, in the order of the processes."""
    found = {path: re.fullmatch(r"rows-(\d+)\.jsonl", path.name) for path in run.iterdir()}
    return sorted((p for p, match in found.items() if match), key=lambda p: int(found[p][1]))


def parse_rows(data: bytes, path: Path) -> tuple[list[dict], int]:
    """Returns the rows in `data`, and how many of its bytes they take: less than all if the last is torn."""
    rows, end = [], 0
    # Not `splitlines`, which also splits at U+2028 and others inside a string.
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        try:
            if line or not last:
                rows.append(_checked(decode_json(line)))
        except ValueError as error:
            if last:
                return rows, end
            raise ValueError(f"{path}:{number}: broken row: {error}") from None
        end += len(line) + (not last)
    return rows, end


def _checked(row) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    missing = [field for field in KEY_FIELDS if field not in row]
    if missing:
        raise ValueError(f"no {missing[0]!r} in it")
    strength_from_json(row["lambda"])
    return row


def encode_rows(rows: list[dict]) -> bytes:
    """Returns the lines of rows.

    Raises:
      ValueError: one holds a number that is not finite.
    """
    lines = []
    for row in rows:
        try:
            lines.append(encode_json(row) + b"\n")
        except ValueError:
            raise ValueError(f"row {row_key(row)} holds a number that is not finite") from None
    return b"".join(lines)


class RowFile:
    """A file open for rows to be added, whole or not at all.

    Attributes:
      rows: those it had when it was opened.
    """

    def __init__(self, path: Path, *, alone: bool = False):
        """Opens the file, made if missing, and repairs a torn last line.

        Args:
          alone: refuse a file that another process has opened so, until it closes it or ends.

        Raises:
          ValueError: a row before the last is broken; another process has the file.
          OSError: it cannot be opened or written to.
        """
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if alone:
                lock_file(self._file, path)
            self.rows = self._repaired()
        except BaseException:
            self.close()
            raise

    def append(self, lines: bytes) -> None:
        """Adds lines of `encode_rows`, all of them or none, and returns when they are on disk.

        Raises:
          ValueError: they cannot be written (disk full).
        """
        length = os.fstat(self._file).st_size
        try:
            _write_all(self._file, lines)
            os.fsync(self._file)
        except BaseException as error:
            os.ftruncate(self._file, length)
            if isinstance(error, OSError):
                raise ValueError(
                    f"cannot write {self.path}: {error.strerror}; "
                    "rows so far are kept; rerun the command to complete them"
                ) from None
            raise

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self._file >= 0:
            unlock(self._file)
        self._file = -1

    def _repaired(self) -> list[dict]:
        data = read_bytes(self.path)
        rows, length = parse_rows(data, self.path)
        if length < len(data):
            os.ftruncate(self._file, length)
        elif data and not data.endswith(b"\n"):
            # Torn just before the end of the line: the row is whole.
            _write_all(self._file, b"\n")
        return rows


def _write_all(file: int, data: bytes) -> None:
    while data:
        # A nearly full disk takes a part and raises at the next call.
        data = data[os.write(file, data) :]
