"""What a user should know: of their files, said once; of work on its way, told to who asks for it."""

import warnings
from collections.abc import Callable

Tell = Callable[[str], None]
"""Hears a line about work on its way."""
_said: set[str] = set()


class Note(UserWarning):
    """A whole line for the user, where nothing is wrong; commands show it as it is."""


def note(line: str) -> None:
    """Notes a line, unless this process has noted it before."""
    if line not in _said:
        _said.add(line)
        warnings.warn(f"note: {line}", Note, stacklevel=2)


def unheard(line: str) -> None:
    """Is what lines are told to where nobody asks for them."""
