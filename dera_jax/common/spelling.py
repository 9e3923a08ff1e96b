"""How our commands are called here: `python -m eval.sweep` in a checkout, `dera sweep` where it is installed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = {
    **dict.fromkeys(
        ["sweep", "generate", "score", "audit", "compare", "tune", "plot", "curve", "optimum", "weigh", "steer",
         "combine", "lm_eval", "bench", "plan", "serve"],
        "eval",
    ),
    **dict.fromkeys(["sft", "reward", "dpo", "rlhf", "value"], "train"),
}  # fmt: skip
"""Names of the commands, and the folder of a checkout in which each has its door."""
_by_dera = not (Path(__file__).parents[2] / "eval" / "sweep.py").is_file()


@contextmanager
def called_as_dera() -> Iterator[None]:
    """Spells commands `dera NAME` in the block, whatever lies beside the package."""
    global _by_dera
    before, _by_dera = _by_dera, True
    try:
        yield
    finally:
        _by_dera = before


def spelled(name: str) -> str:
    """Returns what the user types to call a command.

    >>> spelled("tune")
    'python -m eval.tune'
    >>> with called_as_dera():
    ...     spelled("tune")
    'dera tune'
    """
    return f"dera {name}" if _by_dera else f"python -m {COMMANDS[name]}.{name}"


_WRITTEN = re.compile(rf"(python -m )?\b(?:eval|train)\.({'|'.join(COMMANDS)})\b(?!\.\w)")


def respelled(text: str) -> str:
    """Returns a text of ours in which commands are spelled as the user calls them.

    >>> with called_as_dera():
    ...     respelled("python -m eval.plot RUN; strengths as in eval.sweep")
    'dera plot RUN; strengths as in dera sweep'
    """
    if not _by_dera:
        return text
    return _WRITTEN.sub(lambda found: f"dera {found[2]}", text)
