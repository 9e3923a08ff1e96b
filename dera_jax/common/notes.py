"""What a user should know: of their files, said once; of work on its way, told to who asks for it."""

import sys
from collections.abc import Callable

Tell = Callable[[str], None]
"""Hears a line about work on its way."""
_said: set[str] = set()


def note(line: str) -> None:
    """Says a line on stderr, unless this process has said it before."""
    if line not in _said:
        _said.add(line)
        print(f"note: {line}", file=sys.stderr)


def unheard(line: str) -> None:
    """Is what lines are told to where nobody asks for them."""
