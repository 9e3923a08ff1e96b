"""The JSON files of a model folder."""

from pathlib import Path

from dera_jax.files import read_json


def read_object(path: Path) -> dict:
    """Returns the JSON object that a file holds; an empty one where there is no file.

    Raises:
      ValueError: the file cannot be read, or holds something else.
    """
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
