"""Ctrl-C, from the first instant of a process to its last.

Python raises KeyboardInterrupt wherever the main thread is: in an import, where it makes forty lines; in a
callback of the garbage collector, where it is thrown away and the command goes on; in a compilation not
before that has ended. So a process of ours ends itself at Ctrl-C, by one line. What is written is written
whole, and needs nothing more. Where something is to be put away first, `raised` gives the exception back.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal."""
PATIENCE = 0.5
"""Seconds that the main thread has to answer; it may be in a compilation."""
_told = ""
"""What is said behind `interrupted`."""


def begin() -> None:
    """Makes Ctrl-C end this process from now on. Nothing of weight is imported before."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, as for what runs in the background
    signals, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _end)
    sys.unraisablehook = _interrupt_again
    threading.Thread(target=_watch, args=(signals,), daemon=True).start()


@contextmanager
def telling(text: str) -> Iterator[None]:
    """Has an interruption of the block say what is kept."""
    global _told
    before, _told = _told, text
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(*(interruption.args or (text,))) from None
    finally:
        _told = before


@contextmanager
def raised() -> Iterator[None]:
    """Has Ctrl-C raise KeyboardInterrupt in the block, which has something to put away."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def line(*told: object) -> str:
    """Returns what an interrupted command says."""
    return ": ".join(["interrupted", *filter(None, map(str, told))])


def _end(*_) -> None:
    """Ends the process; what was printed so far is printed."""
    # It may be closed, full, or interrupted in a flush of its own.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    _leave()


def _leave() -> None:
    try:
        tqdm = sys.modules.get("tqdm.std")
        bars = getattr(getattr(tqdm, "tqdm", None), "_instances", None)
        text = "\n" * bool(bars) + line(_told) + "\n"
        os.write(2, text.encode(getattr(sys.stderr, "encoding", None) or "utf-8", "replace"))
    finally:
        os._exit(INTERRUPTED)


def _watch(signals: int) -> None:
    """Ends the process where the main thread has not done so: it hears of signals between two of its steps."""
    while number := os.read(signals, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _end:
            time.sleep(PATIENCE)
            if signal.getsignal(signal.SIGINT) is _end:
                _leave()


def _interrupt_again(unraisable) -> None:
    """Says an interruption again that a callback has swallowed."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(unraisable)
