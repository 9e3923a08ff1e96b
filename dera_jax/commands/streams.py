"""Standard output and error as they are: of any encoding, closed, full, or with nobody who reads."""

import codecs
import contextlib
import io
import os
import sys
import unicodedata

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


def begin() -> None:
    """Makes this process's standard streams such that nothing that is printed can end a command."""
    # A file opened later would take the number of a closed stream, and get what libraries print.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    error = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)
    sys.stderr = _Lenient(error.buffer, encoding=error.encoding, line_buffering=True)
    make_readable()


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
