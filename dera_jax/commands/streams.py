"""Standard error that cannot be written to: what is told there is lost, and nothing else."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def forgiving_stderr() -> Iterator[None]:
    """Lets no write to standard error fail: a progress bar on a full disk must not end a run."""
    before = sys.stderr
    if before is not None:  # closed
        sys.stderr = _Forgiving(before)
    try:
        yield
    finally:
        sys.stderr = before


class _Forgiving:
    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act, *args) -> None:
        try:
            act(*args)
        except OSError:
            # What is left in the buffer would fail once more at exit, and decide the exit code.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
