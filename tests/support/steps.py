"""A step of the reproduction that only notes that it ran."""

from pathlib import Path

from dera_jax.common.files import write_text

MADE: list[str] = []


def touch(out: Path, text: str) -> None:
    """A step's function: writes a file, and notes that it ran."""
    MADE.append(out.name)
    write_text(out / "text.txt", text)
