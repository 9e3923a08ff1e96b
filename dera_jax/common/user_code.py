"""A user's own code: found as `module:function`, and run so that its failures are one line.

It runs in this process. Whatever it raises, SystemExit and KeyboardInterrupt too, becomes one line with its
file and line; the standard streams and the current folder are put right behind it. What ends the process
itself (os._exit, a crash in C) cannot be met here.
"""

import importlib
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

from dera_jax.common.shown import shown

T = TypeVar("T")


class UserCodeError(ValueError):
    """A user's own code has failed; the message is one line."""


def run(what: str, function: Callable[[], T]) -> T:
    """Returns what `function`, a user's code, returns.

    Args:
      what: the code, as the user named it.

    Raises:
      UserCodeError: it raised anything; with `what`, and file and line.
      KeyboardInterrupt: the user pressed Ctrl-C, whatever the code made of that.
    """
    with _one_process(), _process_kept(), _ctrl_c() as pressed:
        try:
            found = function()
        except BaseException as error:
            if pressed.raised:
                raise KeyboardInterrupt from None
            if isinstance(error, UserCodeError):
                raise
            raise UserCodeError(f"{what}: {describe(error)}") from error
    if pressed.raised:
        raise KeyboardInterrupt
    return found


@contextmanager
def described(what: str) -> Iterator[None]:
    """Raises UserCodeError, one line, where the code in the block, named `what`, raises an error."""
    try:
        yield
    except UserCodeError:
        raise
    except Exception as error:
        raise UserCodeError(f"{what}: {describe(error)}") from error


def load_function(spec: str, what: str) -> Callable:
    """Returns the function that `module:function` names; the current folder is looked in first.

    Args:
      what: the option and its value, for errors.

    Raises:
      ValueError: `spec` is written in another way, or there is no such function.
      UserCodeError: the module fails where it is imported.
    """
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise ValueError(f"{what}: expected module:function, found {shown(spec, 80)}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # As `python -m` does.
    function = run(what, lambda: getattr(importlib.import_module(module_name), name, None))
    if not callable(function):
        raise ValueError(f"{what}: the module {module_name} has no function {name}")
    return function


@contextmanager
def _ctrl_c() -> Iterator[SimpleNamespace]:
    """Gives what tells a Ctrl-C of the user's from a KeyboardInterrupt that code raises of its own accord."""
    pressed = SimpleNamespace(raised=False)
    before = signal.getsignal(signal.SIGINT)
    # Signals reach the main thread only; SIG_IGN and SIG_DFL call nothing.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed
        return

    def handle(number: int, frame: object) -> None:
        try:
            before(number, frame)
        except BaseException:
            pressed.raised = True
            raise

    signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _one_process() -> Iterator[None]:
    """Ends a fork of this process that comes out of the block: two would write the same rows."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(0)


@contextmanager
def _process_kept() -> Iterator[None]:
    """Puts the standard streams and the current folder back as they were."""
    folder, streams = os.getcwd(), {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
    copies = {number: os.dup(number) for number in range(3) if _is_open(number)}
    try:
        yield
    finally:
        with suppress(OSError):  # the folder is gone
            os.chdir(folder)
        for number, copy in copies.items():
            if not _is_open(number):
                os.dup2(copy, number)
            os.close(copy)
        for number, (name, stream) in enumerate(streams.items()):
            setattr(sys, name, _reopened(stream, number) if _is_closed(stream) else stream)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _is_closed(stream: object) -> bool:
    return bool(getattr(stream, "closed", False))


def _reopened(stream: object, number: int) -> object:
    """Returns a stream in place of a closed one."""
    mode, encoding = ("w" if number else "r"), getattr(stream, "encoding", None)
    return open(number, mode, encoding=encoding, errors="backslashreplace", closefd=False)


def describe(error: BaseException) -> str:
    """Returns an error's type, its message and the place in the user's code, on one line."""
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # a class of the user's
        message = ""
    message, place = shown(" ".join(message.split()), 300), _place(error)
    return type(error).__name__ + f": {message}" * bool(message) + f" ({place})" * bool(place)


_LIBRARIES = tuple(
    os.path.join(os.path.realpath(path), "")
    for path in {Path(__file__).parents[1], *map(sysconfig.get_paths().get, ("stdlib", "purelib", "platlib"))}
)


def _place(error: BaseException) -> str:
    """Returns file and line, the innermost that are neither Python's, nor a package's, nor ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    walked = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, line) for frame, line in walked]
    users = [(file, line) for file, line in places if not _is_library(file)]
    return f"{_short(users[-1][0])}:{users[-1][1]}" if users else ""


def _is_library(file: str) -> bool:
    return file.startswith(("<frozen ", "<@beartype")) or os.path.realpath(file).startswith(_LIBRARIES)


def _short(file: str) -> str:
    """Returns a path as seen from the current folder, if it lies in it."""
    return shown(file.removeprefix(os.path.join(os.getcwd(), "")), 200)
