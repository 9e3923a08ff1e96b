"""A run's folder with several processes at work in it.

The first process holds the folder as a single one would: it locks it, refuses strangers, takes in what an
earlier run has left. Then the writing process of each group adds to a file of its own, `rows-<process>.jsonl`,
and in the end the first process takes those in. Whatever goes wrong where all can be told ends all of them
with one line; a process that is killed leaves its file, for the next run.
"""

import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import jax

from dera_jax.common.files import read_bytes
from dera_jax.devices import processes
from dera_jax.devices.lost import telling_of_loss
from dera_jax.devices.mesh import Group
from dera_jax.results.folder import RunFolder
from dera_jax.results.manifests import read_manifest
from dera_jax.results.row_file import RowFile, part_path
from dera_jax.results.rows import RowKey, encode_rows, parse_rows, row_key

PATIENCE = 10.0
"""Seconds in which a file that one process has written must be seen by the others."""


class SharedFolder:
    """A `RunFolder` that the processes of a run share; a context manager, to be entered by all of them.

    Attributes:
      rows: of the folder, and those that this process has added; after `collect` all, in the first process.
      keys: their `row_key`s.
    """

    def __init__(self, folder: RunFolder, group: Group, prepare: Callable[[RunFolder], bool]):
        """Names the folder; nothing happens to it before it is entered.

        Args:
          folder: not entered.
          group: of this process.
          prepare: completes the rows there and returns whether more are to come; called by the first
            process, before the others see them and again when all have been collected.
        """
        self.path = folder.path
        self.rows: list[dict] = []
        self.keys: set[RowKey] = set()
        self._folder, self._group, self._prepare = folder, group, prepare
        self._part: RowFile | None = None
        self._decoding = False

    def __enter__(self) -> "SharedFolder":
        """Opens the folder in the first process, then the files of those that write.

        Raises:
          ValueError: the folder is refused, or a process does not see what the first has written there.
        """
        try:
            mark, *_ = processes.exchange(processes.together(self._open))
            processes.together(lambda: self._join(mark))
        except BaseException:
            self._close()
            raise
        self._decoding = True
        return self

    def __exit__(self, kind, error, trace) -> None:
        # In lockstep the others may wait for this process's next step, where nothing can be told: they end
        # when the service notices that it is gone. What is wrong with the input all of them find.
        lockstep = processes.in_lockstep(self._group)
        try:
            if self._decoding and isinstance(error, ValueError if lockstep else Exception):
                processes.tell_failure(error)
        finally:
            self._close()
        if lockstep and isinstance(error, Exception):
            with telling_of_loss("rows so far are kept, rerun the command to complete them"):
                raise error

    @property
    def manifest(self) -> dict:
        """The manifest, as the first process has written it last."""
        return self._folder.manifest if processes.leads() else read_manifest(self.path)

    def append(self, rows: list[dict]) -> None:
        """Adds rows to this process's file if it is the one that writes; see `RunFolder.append`."""
        if self._part is None or not rows:
            return
        lines = encode_rows(rows)
        try:
            self._part.append(lines)
        except ValueError:
            self._decoding = not processes.in_lockstep(self._group)
            raise
        self.rows.extend(rows)
        self.keys.update(map(row_key, rows))

    def collect(self) -> None:
        """Waits for all processes; then the first takes in what they have written.

        Raises:
          ValueError: in one of them something went wrong.
        """
        self._decoding = False
        written = processes.exchange(processes.together(self._end_part))
        processes.together(lambda: self._merge(written) if processes.leads() else None)

    def finish(self, extent: dict, extra: dict | None = None) -> None:
        """Records what `RunFolder.finish` does; the first process's call counts."""
        if processes.leads():
            self._folder.finish(extent, extra)

    def _open(self) -> list | None:
        """Returns what the others must find in the folder: this run's mark, and a sum over the rows."""
        if not processes.leads():
            return None
        self._folder.__enter__()
        if self._prepare(self._folder):
            # Not with its own first row: another process's may be on disk before.
            self._folder.record_command()
        self.rows, self.keys = list(self._folder.rows), set(self._folder.keys)
        return [self._folder.mark(), zlib.crc32(read_bytes(self.path / "rows.jsonl"))]

    def _join(self, mark: list) -> None:
        if not processes.leads():
            rows = _patiently(lambda: _rows_of_run(self.path, mark))
            if rows is None:
                raise ValueError(
                    f"does not see what process 0 has written in {self.path.absolute()}: "
                    "all processes of a run must share the folder of --out"
                )
            self.rows, self.keys = rows, set(map(row_key, rows))
        if self._group.writes:
            self._part = RowFile(part_path(self.path, jax.process_index()), alone=True)

    def _end_part(self) -> list | None:
        """Returns the name and the length of this process's file, if it writes one."""
        if self._part is None:
            return None
        self._part.close()
        return [self._part.path.name, os.stat(self._part.path).st_size]

    def _merge(self, written: list[list | None]) -> None:
        for process, part in enumerate(written):
            if part and not _patiently(lambda part=part: _has_length(self.path / part[0], part[1])):
                raise ValueError(
                    f"{self.path / part[0]}: expected {part[1]} bytes of rows of process {process}"
                )
        self._folder.collect()
        self._prepare(self._folder)
        self.rows, self.keys = self._folder.rows, self._folder.keys

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()
        if processes.leads():
            self._folder.__exit__()


def _rows_of_run(path: Path, mark: list) -> list[dict] | None:
    """Returns the rows of a folder if it has the mark of the run, else None."""
    lock, file = path / ".lock", path / "rows.jsonl"
    if not (lock.exists() and file.exists() and read_bytes(lock, 1 << 20).decode() == mark[0]):
        return None
    data = read_bytes(file)
    return parse_rows(data, file)[0] if zlib.crc32(data) == mark[1] else None


def _has_length(path: Path, length: int) -> bool | None:
    return True if path.exists() and path.stat().st_size == length else None


def _patiently(look: Callable):
    """Returns what `look` finds, or None: other hosts' files may show up late on a network's file system."""
    end = time.monotonic() + PATIENCE
    while (found := look()) is None and time.monotonic() < end:
        time.sleep(0.2)
    return found
