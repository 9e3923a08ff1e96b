"""The way into a command from a process of its own; imports nothing of weight."""

import importlib
import os
from collections.abc import Callable, Sequence

from dera_jax.commands.process import interrupts, streams
from dera_jax.common.folders import home


def door(name: str) -> Callable[..., int]:
    """Returns the `main` of a command, which is imported when it is called."""

    def main(argv: Sequence[str] | None = None) -> int:
        if argv is None:
            begin()
        return importlib.import_module(f"dera_jax.commands.{name}").main(argv)

    return main


def begin() -> None:
    """Prepares this process for a command."""
    streams.begin()
    interrupts.begin()
    # Libraries ask for the user's home while they are imported, and end where there is none.
    os.environ["HOME"] = home()
    # Commands write figures and show none; another backend may not be there, or not be one.
    os.environ["MPLBACKEND"] = "agg"
