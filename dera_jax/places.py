"""Where we keep what can be made again, for users who may have no home."""

import os
import pwd
from pathlib import Path

NOWHERE = "/dev/null"
"""Stands for the home of users who have none: nothing can be made below a device."""


def home() -> str:
    """Returns the user's home: of HOME, else of the system's list, else `NOWHERE`."""
    named = os.environ.get("HOME", "")
    if os.path.isabs(named):
        return named
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a user of a container, with a number alone
        return NOWHERE


def cache_folder() -> Path:
    """Returns our folder in XDG_CACHE_HOME, which is absolute, or in ~/.cache. It need not be there."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named if os.path.isabs(named) else f"{home()}/.cache") / "dera_jax"
