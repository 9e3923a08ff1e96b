"""What a user should know of their files, said once."""

import sys

_said: set[str] = set()


def note(line: str) -> None:
    """Says a line on stderr, unless this process has said it before."""
    if line not in _said:
        _said.add(line)
        print(f"note: {line}", file=sys.stderr)
