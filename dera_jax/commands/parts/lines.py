"""Standard input, line by line, for commands that a user talks to."""

import sys
from collections.abc import Callable

from dera_jax.commands.options import cli


def each_line(take: Callable[[str], None]) -> None:
    """Hands over each line of standard input until it ends or says /quit; a line that is wrong ends nothing.

    Args:
      take: raises ValueError where a line is wrong.
    """
    sign = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(sign).strip()
        except EOFError:
            return
        if line.partition(" ")[0] == "/quit":
            return
        try:
            take(line)
        except ValueError as error:
            print(f"error: {cli.in_one_line(error)}", file=sys.stderr)
