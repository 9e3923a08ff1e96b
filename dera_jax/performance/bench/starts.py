"""Starts of processes: what importing costs, and the way to the first tokens."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from dera_jax.common.spelling import COMMANDS
from dera_jax.performance.bench.timing import Progress, ratio, spread, timed

STARTS = {"cold": "nothing compiled before", "warm": "compiled by an earlier command"}
READERS = {
    "plot": ("{run}",),
    "tune": ("{run}",),
    "compare": ("{run}", "{run}", "--against=0", "--judge=length:1:5"),
}
"""Commands that read a run and need no JAX, with their words."""
DERA = [sys.executable, "-m", "dera_jax.commands.dera"]


def bench_startup(names: Sequence[str], repeats: int, progress: Progress = print) -> dict:
    """Returns the seconds from a process's start to its first tokens, with and without compiled programs.

    Args:
      names: of the reference and the aligned model; none is the toy pair.
    """
    options = [f"--{kind}={name}" for kind, name in zip(("reference", "aligned"), names, strict=False)]
    short = ["--max-new-tokens=16", "--lambda=0.5", "--prompt=Once upon a time"]
    command = [*DERA, "generate", *options, *short]
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for turn in range(repeats):
        progress(f"repeat {turn + 1} of {repeats}")
        with _nothing_kept() as env:
            for name in STARTS:
                seconds[name].append(timed(lambda e=env: _run(command, e))())
    return {"seconds": {name: spread(values) for name, values in seconds.items()}}


def bench_imports(repeats: int, progress: Progress = print) -> dict:
    """Returns the seconds of processes that should not wait for JAX, and their ratios to `import jax`.

    They are `import dera_jax`, the help of every command, and `READERS` on a small run of the toy pair.
    """
    with _nothing_kept() as env:
        run = os.path.join(env["XDG_CACHE_HOME"], "run")
        progress("a run to read")
        _run([*DERA, "sweep", "--lambda=0,1", "--num-prompts=20", "--max-new-tokens=8", f"--out={run}"], env)
        commands = {
            "import jax": [sys.executable, "-c", "import jax"],
            "import dera_jax": [sys.executable, "-c", "import dera_jax"],
            **{f"{name} --help": [*DERA, name, "--help"] for name in COMMANDS},
            **{name: [*DERA, name, *(w.format(run=run) for w in words)] for name, words in READERS.items()},
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for command in commands.values():  # what is compiled to bytecode once
            _run(command, env)
        for turn in range(repeats):
            progress(f"repeat {turn + 1} of {repeats}")
            for name, command in commands.items():
                seconds[name].append(timed(lambda c=command: _run(c, env))())
    figures = {name: spread(values) for name, values in seconds.items()}
    unit = figures["import jax"]
    return {"seconds": figures, "to_import_jax": {name: ratio(each, unit) for name, each in figures.items()}}


@contextmanager
def _nothing_kept() -> Iterator[dict[str, str]]:
    """Gives an environment whose folder of compiled programs is empty."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"XDG_CACHE_HOME": folder}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        yield env


def _run(command: Sequence[str], env: Mapping[str, str]) -> None:
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(f"{' '.join(command[1:])}: {ended.stderr.strip().splitlines()[-1]}")
