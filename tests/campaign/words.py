"""Words of the command line: every option of every command with odd values, and machines as they are."""

import importlib
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO

from tests.campaign.commands import COMMANDS

BASE = (
    "sweep",
    "generate",
    "score",
    "score pairs",
    "score models",
    "plot",
    "tune",
    "compare",
    "combine",
    "sft",
    "dpo",
    "reward",
    "rlhf",
    "plan",
    "lm_eval",
    "dera",
)
VALUES = {
    "empty": "",
    "space": " ",
    "minus": "-1",
    "zero": "0",
    "half": "0.5",
    "1e999": "1e999",
    "nan": "nan",
    "inf": "-inf",
    "huge": "99999999999999999999",
    "digits": "9" * 5000,
    "text": "x",
    "long": "x" * 5000,
    "long path": "/a" * 3000,
    "esc": "\x1b[2J\x07",
    "lines": "a\nerror: b\rc",
    "bidi": "\u202egnp\u2066",
    "bytes": "\udcff\udcfe",
    "nul": "a\0b",
    "comma": ",",
    "commas": "1,,2",
    "twice": "1,1",
    "colon": ":",
    "colons": "0:1:0",
    "range": "0:1e9:1e-9",
    "vector": "1+",
    "grid": "0:1:1e-5x0:1:1e-5",
    "hex": "0x10",
    "wide": "１２",
    "underscore": "1_000",
    "true": "true",
    "none": "none",
    "braces": "{}",
    "percent": "%s%n",
    "up": "../../etc/passwd",
    "hf": "hf:",
    "hub": "a/b@c+d/e@f",
    "tfds": "tfds:",
    "model": "model:",
    "python": "python:os",
    "python esc": "python:\x1b:x",
    "os": "os:system",
    "url": "http://[,m",
    "user": "http://u:p@h/v1?k=s,m",
    "file": "file:///etc/passwd,m",
    "device": "zero",
    "fifo": "fifo",
    "dangling": "dangling",
    "loop": "loop",
    "folder": "folder",
    "run": "run",
    "model folder": "aligned",
    "data": "pairs.jsonl",
    "zero.jsonl": "zero.jsonl",
    "fifo.jsonl": "fifo.jsonl",
    "folder.jsonl": "folder.jsonl",
    "lexicon": "lexicon:zero",
    "lexicon fifo": "lexicon:fifo",
    "surrogate path": "\ud800",
}
LENGTHY = {
    "--max-steps",
    "--num-train-epochs",
    "--coordinator",
    "--num-processes",
    "--process-id",
    "--coordinator-timeout",
    "--concurrency",
    "--timeout",
    "--retries",
    "--bootstrap-iters",
}
"""Options that may ask for any length of work, or for other machines."""
WHOLE = {
    "nothing": [],
    "one word": ["x"],
    "many": ["x"] * 10_000,
    "unknown": ["--nothing=1"],
    "esc": ["--\x1b[2J=1", "\x1b[2J"],
    "dashes": ["--"],
    "three dashes": ["---"],
    "minus": ["-"],
    "equals": ["--=1"],
    "help twice": ["--help", "--help"],
    "bytes": ["\udcff"],
    "short": ["-x"],
    "at": ["@config.json"],
    "habits": ["--model=a", "--ref_model=b", "--output_dir=c"],
    "nul": ["a\0b"],
    "long": ["x" * 100_000],
}


@cache
def options(command: str) -> tuple[str, ...]:
    """Returns the options of a command that take a value, as its help names them."""
    if COMMANDS[command].module == "dera":
        return ()
    told = StringIO()
    with redirect_stdout(told), suppress(SystemExit):
        importlib.import_module(f"dera_jax.commands.{COMMANDS[command].module}").main(["--help"])
    found = dict.fromkeys(
        re.findall(r"^ +(?:-\w[ \w]*, )?(--[\w-]+)(?: [A-Z\[{]|[A-Z]|,| *\n? *\{)", told.getvalue(), re.M)
    )
    return tuple(name for name in found if name not in LENGTHY)


def changes(command: str) -> Iterator[str]:
    """Yields the names of what is done to the words of a command."""
    for option in options(command):
        yield from (f"option {option}={name}" for name in VALUES)
    for place, word in enumerate(COMMANDS[command].words):
        if not word.startswith("-"):
            yield from (f"word {place}={name}" for name in VALUES)
    yield from (f"whole {name}" for name in WHOLE)
    yield from (f"more {name}" for name in WHOLE)


def changed(command: str, change: str) -> list[str]:
    """Returns the words of a command after one of its `changes`."""
    words = list(COMMANDS[command].words)
    what, _, rest = change.partition(" ")
    if what == "whole":
        return list(WHOLE[rest])
    if what == "more":
        return [*words, *WHOLE[rest]]
    where, _, name = rest.partition("=")
    if what == "word":
        words[int(where)] = VALUES[name]
        return words
    return [*(word for word in words if word.partition("=")[0] != where), f"{where}={VALUES[name]}"]


MACHINES = (
    "ascii",
    "latin-1",
    "posix",
    "no home",
    "home that is none",
    "no cache",
    "cache that is a file",
    "no plots",
    "stdout closed",
    "stderr closed",
    "stdin closed",
    "stdout full",
    "stderr full",
    "reader gone",
    "narrow",
    "no terminal",
    "no temporary folder",
    "few files",
    "help posix",
    "help ascii",
    "hash seed",
    "optimized",
    "no path",
    "folder gone",
)
ON_MACHINES = ("sweep", "generate", "table", "tune", "compare", "score", "combine", "sft", "dera")
