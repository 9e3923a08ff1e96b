"""Folders outside of any project: of caches, and of the data that the project does not carry."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder of all that is kept between commands: `dera_jax` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dera_jax"


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
    """Returns what to say of a path that is not there: in the data folder, also how to get it."""
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
