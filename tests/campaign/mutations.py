"""What is done to a file: values of other types in JSON, broken bytes, and things in its place that are no files."""

import json
import os
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

LONG = "a" * 100_000
NESTED = "[" * 100_000 + "]" * 100_000
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus": "-1",
    "one": "1",
    "seven": "7",
    "half": "0.5",
    "whole": "2.0",
    "big": "1000000000000",
    "huge": "1" + "0" * 30,
    "digits": "9" * 5000,
    "1e308": "1e308",
    "1e999": "1e999",
    "-1e999": "-1e999",
    "nan": "NaN",
    "tiny": "5e-324",
    "empty": '""',
    "text": '"x"',
    "number text": '"2"',
    "long": f'"{LONG}"',
    "esc": r'"\u001b]0;x\u0007\u001b[2J"',
    "nul": r'"a\u0000b"',
    "lines": r'"a\nerror: b\r\u2028c"',
    "bidi": r'"\u202egnp\u2066.exe"',
    "c1": r'"\u009b2J"',
    "surrogate": r'"a\ud800b"',
    "percent": '"%s{0}%n{x}"',
    "up": '"../../../../etc/passwd"',
    "format": '"=1+1|`<b>`\\\\x"',
    "list": "[]",
    "list of null": "[null]",
    "list of lists": '[[1],["x"]]',
    "list of texts": '["x","y"]',
    "object": "{}",
    "object in it": '{"a":{"b":[1]}}',
    "deep": NESTED,
    "deep object": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "many": "[" + ",".join(["1"] * 100_000) + "]",
}
"""JSON texts by name."""
EDITS = ("missing", "twice", "other name", "more", "fewer")
"""Of a field, beside other values; the last two of lists and objects."""
BROKEN = (
    "{",
    "[1,",
    '{"a":1}}',
    "{'a': 1}",
    '{"a":1,}',
    '{"a":01}',
    "nul",
    '"a',
    "// x\n{}",
    '{"a":\t1 "b":2}',
)
PLACE = "@@here@@"


def paths(document, depth: int = 4) -> Iterator[tuple]:
    """Yields where values lie in a JSON document: of lists the first, of large objects two."""
    if isinstance(document, dict):
        names = list(document)
        # A vocabulary has hundreds of names, all of one kind.
        for name in names if len(names) < 60 else names[:2]:
            yield (name,)
            if depth > 1:
                yield from ((name, *rest) for rest in paths(document[name], depth - 1))
    elif isinstance(document, list) and document:
        yield (0,)
        if depth > 1:
            yield from ((0, *rest) for rest in paths(document[0], depth - 1))


def changes(document) -> Iterator[str]:
    """Yields the names of all changes to a JSON document."""
    for path in paths(document):
        at = json.dumps(path)
        found = at_path(document, path)
        edits = EDITS if isinstance(found, list | dict) else EDITS[:3]
        for name in (*VALUES, *edits):
            yield f"{at}={name}"
    for name in VALUES:
        yield f"={name}"
    for number in range(len(BROKEN)):
        yield f"broken {number}"


def at_path(document, path: tuple):
    """Returns what lies at a path."""
    for step in path:
        document = document[step]
    return document


def change(document, name: str) -> str:
    """Returns the JSON text of a document after one of its `changes`."""
    if name.startswith("broken "):
        return BROKEN[int(name.removeprefix("broken "))]
    where, _, what = name.rpartition("=")
    if not where:
        return VALUES[what]
    document, path = json.loads(json.dumps(document)), json.loads(where)
    parent, last = at_path(document, path[:-1]), path[-1]
    before = parent[last]
    if what == "missing":
        del parent[last]
        return json.dumps(document)
    if what == "other name" and isinstance(parent, dict):
        parent["\x1b[2J" + last] = parent.pop(last)
        return json.dumps(document)
    parent[last] = PLACE
    text = json.dumps(document)
    if what == "twice" and isinstance(parent, dict):
        key = json.dumps(last)
        return text.replace(f'{key}: "{PLACE}"', f"{key}: {json.dumps(before)}, {key}: null")
    return text.replace(f'"{PLACE}"', _edited(before, what))


def _edited(before, what: str) -> str:
    if what in VALUES:
        return VALUES[what]
    if isinstance(before, list):
        return json.dumps(before * 2 if what == "more" else before[:-1])
    if isinstance(before, dict):
        more = before | {"surprise \x1b[2J": [None]}
        return json.dumps(more if what == "more" else dict(list(before.items())[:-1]))
    return json.dumps([before])  # an element of a list, in a list of its own


Bytes = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 30])):
        if found:
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _drop(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.randrange(1, 40) :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))] if data else data


def _repeat(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines + [draw.choice(lines)] if lines else [])


def _swap(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


def _number(data: bytes, draw: random.Random) -> bytes:
    """Another number in the place of one: lengths, counts and offsets, in headers too."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data + b"1"
    at = draw.choice(found)
    new = draw.choice(
        [b"0", b"-1", b"99999999999999999999", b"1e400", b"1.5", str(int(at[0][:9]) + 1).encode()]
    )
    return data[: at.start()] + new + data[at.end() :]


BYTES: dict[str, Bytes] = {
    "empty": lambda data, draw: b"",
    "cut": _cut,
    "cut by one": lambda data, draw: data[:-1],
    "without its start": lambda data, draw: data[7:],
    "nuls": lambda data, draw: bytes(8192),
    "nuls at the end": lambda data, draw: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "carriage returns": lambda data, draw: data.replace(b"\n", b"\r"),
    "dos": lambda data, draw: data.replace(b"\n", b"\r\n"),
    "spaces": lambda data, draw: b" \n\t\n  \n",
    "bom": lambda data, draw: b"\xef\xbb\xbf" + data,
    "utf-16": lambda data, draw: data.decode("latin-1").encode("utf-16"),
    "latin-1": lambda data, draw: data.replace(b"a", b"\xe4"),
    "bad utf-8": lambda data, draw: data[:5] + b"\xff\xfe\xed\xa0\x80" + data[5:],
    "flip": _flip,
    "drop": _drop,
    "number": _number,
    "repeat a line": _repeat,
    "other order": _swap,
    "noise": lambda data, draw: draw.randbytes(draw.choice([1, 8, 9, 4096])),
    "noise at the end": lambda data, draw: data + draw.randbytes(64),
    "a long line": lambda data, draw: data + b"x" * 5_000_000,
    "gzip": lambda data, draw: b"\x1f\x8b\x08\x00" + data,
    "pickle": lambda data, draw: (
        b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    ),
    "html": lambda data, draw: b"<!DOCTYPE html><html><body>404: \x1b[31mnot here</body></html>\n",
    "pointer": lambda data, draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 97752\n",
}
DRAWN = {"flip": 4, "drop": 2, "cut": 2, "number": 6, "noise": 2, "repeat a line": 1}
"""How often there is a change that draws where it strikes."""


def byte_changes() -> Iterator[str]:
    """Yields the names of all changes to bytes."""
    for name in BYTES:
        yield from (f"{name} {number}" for number in range(DRAWN[name])) if name in DRAWN else (name,)


def change_bytes(data: bytes, name: str, seed: str) -> bytes:
    """Returns bytes after a change; where it strikes depends on `seed` alone."""
    draw = random.Random(f"{seed} {name}")
    kind = name if name in BYTES else name.rpartition(" ")[0]
    return BYTES[kind](data, draw)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


PLACES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "folder": _folder,
    "fifo": lambda path: os.mkfifo(path),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "null device": lambda path: path.symlink_to("/dev/null"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "socket": _socket,
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
}
"""What lies in the place of a file."""


def put(path: Path, name: str) -> None:
    """Replaces a file by what is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    PLACES[name](path)
