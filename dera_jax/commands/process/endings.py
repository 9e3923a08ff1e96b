"""How a command ends: its exit code, and one line where something was wrong."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import dera_jax
from dera_jax.commands.process import interrupts, streams
from dera_jax.common.shown import shown

DEBUG = "DERA_DEBUG"
"""Environment variable; where it is set, errors come with their traceback."""
LONGEST = 600
"""Characters of a line about an error."""
LESS_MEMORY = "fewer --rows (--batch-size), shorter texts, --dtype=bfloat16, a larger `model` in --mesh help"
TERMINATED = 143
"""Exit code after SIGTERM: 128 and the number of the signal. What was to come after this command cannot."""
WRONG, UNEXPECTED = 2, 1
"""Exit codes: the input, or we, made a mistake."""


class Terminated(Exception):
    """The command was asked to end (SIGTERM) before it was done; says what is kept."""


def command(main: Callable[[Sequence[str] | None], None]) -> Callable[[Sequence[str] | None], int]:
    """Turns a command's body into a `main` that returns its exit code.

    Bad input is one line and 2; an error that nobody has foreseen one line and 1; Ctrl-C has a line too, and
    the code that shells give it.
    """

    @wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        streams.make_readable()
        streams.tame_libraries()
        try:
            main(argv)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader (`| head`) has seen enough
            streams.close_stdout()
            return 0
        except KeyboardInterrupt as interruption:
            code = _fail(interrupts.line(*interruption.args), interrupts.INTERRUPTED)
            if argv is None:  # as a process: taken down in the middle of a compilation, JAX would crash
                os._exit(code)
            return code
        except Terminated as terminated:
            return _fail(str(terminated), TERMINATED)
        except Exception as error:
            if os.environ.get(DEBUG, "0") not in ("", "0"):
                traceback.print_exc()
            line, code = _told(error)
            return _fail(f"error: {line}", code)
        return 0

    return wrapped


@contextmanager
def stopped_by_exceptions() -> Iterator[None]:
    """Has Ctrl-C and SIGTERM raise in the block, which has something to put away."""
    if threading.current_thread() is not threading.main_thread():
        yield  # hears no signals
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with interrupts.raised():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_) -> None:
    raise Terminated("terminated")


def in_one_line(text: object) -> str:
    """Returns what a message says, on one line of bounded length and without control characters."""
    return shown(shown(" ".join(str(text).split())), LONGEST)


def _told(error: Exception) -> tuple[str, int]:
    """Returns what is said of an error, and the exit code."""
    if isinstance(error, OSError):
        return in_one_line(_of_system(error)), WRONG
    if isinstance(error, ValueError):
        return in_one_line(error), WRONG
    if isinstance(error, RecursionError):
        return "a file, a template or a code is nested too deeply", WRONG
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory, {LESS_MEMORY}: {in_one_line(error)[:200]}", WRONG
    said = shown(" ".join(str(error).split()), 300)
    line = f"unexpected {type(error).__name__}: {said}{_place(error)} ({DEBUG}=1 shows the traceback)"
    return in_one_line(line), UNEXPECTED


def _of_system(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    reason = "the name is too long" if error.errno == errno.ENAMETOOLONG else error.strerror
    return f"{shown(error.filename, 200)}: {reason}" if error.filename is not None else reason


def _place(error: Exception) -> str:
    """Returns the last line of ours that an error came through."""
    root = Path(dera_jax.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is `wrapped`
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(root)]
    return f" at {Path(ours[-1].filename).relative_to(root.parent)}:{ours[-1].lineno}" if ours else ""


def _fail(line: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # a full disk under standard output, which Python would report once more
        streams.close_stdout()
    print(line, file=sys.stderr)
    return code
