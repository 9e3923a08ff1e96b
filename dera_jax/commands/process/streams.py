"""Standard output and error as they are: of any encoding, closed, full, or with nobody who reads."""

import codecs
import contextlib
import io
import logging
import os
import sys
import unicodedata
import warnings

from dera_jax.common.notes import Note
from dera_jax.common.shown import shown

PLAIN = {
    "λ": "lambda", "β": "beta", "π": "pi", "θ": "theta", "Σ": "sum", "∞": "inf", "×": "x", "±": "+/-", "−": "-",
    "·": "*", "≥": ">=", "≤": "<=", "→": "->", "‖": "||", "…": "...", "–": "-", "—": "-", "─": "-", "│": "|",
    "‘": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
"""How characters of ours are written in ASCII."""
HANDLER = "dera_jax.plain"


def make_readable() -> None:
    """Has standard output and error write what their encoding lacks in plain letters."""
    codecs.register_error(HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


class _Record(logging.LogRecord):
    """What a library logs, without what a terminal would obey: it may speak of names in a user's files."""

    def getMessage(self) -> str:
        return shown(super().getMessage(), keep="\n\t")


def tame_libraries() -> None:
    """Has what libraries log and warn of shown like all other text from outside."""
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning


def _warning(message, category, filename, lineno, line=None) -> str:
    kind = "" if issubclass(category, Note) else "warning: "
    return f"{kind}{shown(message, keep=chr(10))}\n"


def begin() -> None:
    """Makes this process's standard streams such that nothing that is printed can end a command."""
    # A file opened later would take the number of a closed stream, and get what libraries print.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or _stream(0, "r")
    if codecs.lookup(sys.stdin.encoding).name == "ascii":  # of which UTF-8 is more
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    sys.stdout = sys.stdout or _stream(1, "w")
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = _Lenient(open(2, "wb", closefd=False), encoding=encoding, line_buffering=True)  # noqa: SIM115
    make_readable()


def as_text(word: str) -> str:
    """Returns a word of the command line as text: where the locale knows ASCII alone, its bytes are UTF-8."""
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a character, which no command line has; who reads it says so
        return word


def _stream(number: int, mode: str) -> io.TextIOWrapper:
    return open(number, mode, encoding="utf-8", closefd=False)


def close_stdout() -> None:
    """Has nobody read standard output any more: what is left of it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Lenient(io.TextIOWrapper):
    """Standard error, whose disk may be full or whose reader gone: then nobody can be told of it."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letters, error.object[error.start : error.end])), error.end


def _letters(character: str) -> str:
    simple = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return PLAIN.get(character) or simple or character.encode("ascii", "backslashreplace").decode()
