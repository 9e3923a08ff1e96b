"""How a file's content is changed: whole, line by line, field by field, array by array."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

Act = Callable[[Path], None]


def write(path: str, text: str | bytes) -> Act:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return lambda folder: (folder / path).write_bytes(data)


def lines(path: str, *records: dict | str, count: int = 1) -> Act:
    """Returns what writes records as lines."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in records] * count
    return write(path, "".join(text + "\n" for text in texts))


def every(path: str, edit: Callable[[dict, int], object]) -> Act:
    """Returns what changes every line of a file."""

    def act(folder: Path) -> None:
        found = [json.loads(line) for line in (folder / path).read_text().splitlines()]
        for number, each in enumerate(found):
            edit(each, number)
        (folder / path).write_text("".join(json.dumps(each) + "\n" for each in found))

    return act


def edited(path: str, edit: Callable[[dict], object]) -> Act:
    """Returns what changes a JSON object."""

    def act(folder: Path) -> None:
        found = json.loads((folder / path).read_text())
        edit(found)
        (folder / path).write_text(json.dumps(found))

    return act


def tensors(path: str, edit: Callable[[dict], object]) -> Act:
    """Returns what changes the arrays of a file of weights."""

    def act(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        found = load_file(folder / path)
        edit(found)
        save_file({name: np.ascontiguousarray(value) for name, value in found.items()}, folder / path)

    return act


def header(path: str, edit: Callable[[dict], object]) -> Act:
    """Returns what changes the header of a file of weights, its data left as they are."""

    def act(folder: Path) -> None:
        data = (folder / path).read_bytes()
        length = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + length])
        edit(found)
        text = json.dumps(found).encode()
        (folder / path).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return act
