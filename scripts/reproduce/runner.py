"""Makes what experiments declare: the rows that are not there yet, and what those need.

Rows are what lasts. A sweep whose rows lie in the folder of results needs nothing any more; of any other, the
models it needs are trained first, where they are not. Every command goes on where it was killed, and several
processes may work side by side: each takes what no other one is making.
"""

import fcntl
import importlib
import lzma
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dera_jax.experiments import Step
from dera_jax.files import encode_json, make_folder, read_json, write_bytes, write_json

WORK = "WORK"
"""Stands for the folder of all work in commands that are kept."""

PATIENCE = 5.0
"""Seconds to wait where others are making everything that is left."""


@dataclass(frozen=True)
class Folders:
    """Where models and rows are made, and where rows are kept."""

    work: Path
    results: Path


class Busy(Exception):
    """Another process is making a step."""


def make(sweeps: Sequence[Step], folders: Folders) -> None:
    """Makes the rows of all sweeps that are not kept yet; returns when all are.

    Raises:
      SystemExit: a command failed; it has said why.
    """
    left = [sweep for sweep in sweeps if not is_kept(sweep, folders)]
    while left:
        before = len(left)
        for sweep in list(left):
            try:
                _make_rows(sweep, folders)
                left.remove(sweep)
            except Busy:
                continue
        if len(left) == before:
            time.sleep(PATIENCE)


def is_kept(sweep: Step, folders: Folders) -> bool:
    """Whether the rows of this very sweep lie in the results."""
    manifest = folders.results / sweep.folder / "manifest.json"
    return manifest.exists() and read_json(manifest)["reproduction"]["command"] == sweep.words(WORK)


def _make_rows(sweep: Step, folders: Folders) -> None:
    with _claimed(sweep, folders):
        if not is_kept(sweep, folders):
            for need in sweep.needs():
                make_step(need, folders)
            seconds = _run(sweep, folders)
            _keep(sweep, folders, seconds)


def make_step(step: Step, folders: Folders) -> None:
    """Makes a step's folder, and those of what it needs; nothing if it is there.

    Raises:
      Busy: another process is at it.
      SystemExit: a command failed.
    """
    with _claimed(step, folders):
        stamp = folders.work / step.folder / "step.json"
        if stamp.exists() and read_json(stamp)["command"] == step.words(WORK):
            return
        for need in step.needs():
            make_step(need, folders)
        seconds = _run(step, folders)
        write_json(stamp, {"command": step.words(WORK), "seconds": seconds})


@contextmanager
def _claimed(step: Step, folders: Folders) -> Iterator[None]:
    """Holds a step against other processes; the system lets go of it however this one ends."""
    path = folders.work / "locks" / step.folder.replace("/", "+")
    make_folder(path.parent)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(step.folder) from None
        yield


def _run(step: Step, folders: Folders) -> float:
    """Runs a command in this process and returns its seconds."""
    words = step.words(folders.work)
    print("\n$ python -m", *words, flush=True)
    start = time.perf_counter()
    kind, _, name = step.command.partition(".")
    if ":" in step.command:
        module, _, function = step.command.partition(":")
        out = folders.work / step.folder
        make_folder(out)
        arguments = step.arguments(folders.work) | {"out": out}
        getattr(importlib.import_module(module), function)(**arguments)
    else:
        command = importlib.import_module(f"dera_jax.commands.{name}")
        if code := command.main(words[1:]):
            raise SystemExit(code)
    if kind == "train" and not read_json(folders.work / step.folder / "manifest.json").get("finished"):
        raise SystemExit(f"stopped: {step.folder}")
    return round(time.perf_counter() - start, 1)


def _keep(sweep: Step, folders: Folders, seconds: float) -> None:
    """Copies a sweep's rows to the results, compressed, the manifest last: with it they are kept."""
    made, kept = (folder / sweep.folder for folder in (folders.work, folders.results))
    make_folder(kept)
    write_bytes(kept / "rows.jsonl.xz", lzma.compress((made / "rows.jsonl").read_bytes(), preset=9))
    models = {name: _lineage(sweep, name, folders) for name in ("reference", "aligned")}
    told = {"command": sweep.words(WORK), "seconds": seconds, "models": models}
    manifest = read_json(made / "manifest.json") | {"reproduction": told}
    write_bytes(kept / "manifest.json", encode_json(manifest, indent=1) + b"\n")
    shutil.rmtree(made)


def _lineage(sweep: Step, name: str, folders: Folders) -> list[dict]:
    """Returns how a sweep's model was made: the steps with their commands and seconds, the first one first."""
    steps: list[Step] = []
    todo = Step("", "", {name: sweep.options.get(name)}).needs()
    while todo:
        step = todo.pop()
        steps = [step, *(other for other in steps if other != step)]
        todo += step.needs()
    return [read_json(folders.work / step.folder / "step.json") for step in steps]
