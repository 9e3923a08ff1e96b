"""Folders outside of any project: of caches, and of the data that the project does not carry."""

import os
import pwd
from pathlib import Path

from dera_jax.common.shown import shown

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
    """Returns the folder of all that is kept between commands, which need not be there.

    It is `dera_jax` in XDG_CACHE_HOME, if that is absolute, else in ~/.cache.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named if os.path.isabs(named) else f"{home()}/.cache") / "dera_jax"


def data_folder() -> Path:
    """Returns the folder that `scripts/get_data.py` fills: DERA_DATA, else `data` in the cache's."""
    named = os.environ.get("DERA_DATA")
    return Path(named).expanduser() if named else cache_folder() / "data"


def find_data(name: str) -> Path:
    """Returns a file or folder of the data folder.

    Raises:
      ValueError: it is not there.
    """
    path = data_folder() / name
    if not path.exists():
        raise ValueError(f"{path}: {no_such_file(path)}")
    return path


def no_such_file(path: Path) -> str:
    """Returns what to say of a path that is no file: what it is, or that it is not there.

    In the data folder, also how to get it.
    """
    if os.path.isdir(path):
        return "expected a file, found a folder"
    if os.path.exists(path):
        return "expected a file, found a pipe or a device"
    if os.path.islink(path):
        return f"expected a file, found a link to {shown(os.readlink(path), 200)}, which is not there"
    path, data = Path(os.path.abspath(path)), Path(os.path.abspath(data_folder()))
    if data not in path.parents:
        return "no such file"
    return f"no such file; get it: {how_to_get([path.relative_to(data).parts[0]])}"


def how_to_get(names: list[str]) -> str:
    """Returns the command that gets data of these names.

    >>> how_to_get(["e2e", "vader"])
    'python scripts/get_data.py e2e vader'
    """
    return f"python scripts/get_data.py {' '.join(names)}"
