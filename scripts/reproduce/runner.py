"""Makes what experiments declare: the measurements that are not there yet, and what those need.

Rows are what lasts. A sweep whose rows lie in the folder of results needs nothing any more; for any other, the
models it needs are trained first, where they are not there. Every command goes on where it was killed, and several
processes may work side by side: each takes what no other one is making.
"""

import fcntl
import importlib
import lzma
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dera_jax.commands import dera
from dera_jax.common.files import make_folder, write_bytes
from dera_jax.common.folders import data_folder, how_to_get
from dera_jax.common.json_files import read_json, write_json
from dera_jax.experiments.declare import Step
from dera_jax.results.reading import read_rows
from dera_jax.results.rows import encode_rows, sort_rows

WORK = "WORK"
"""Stands for the folder of all work in commands that are kept."""

DATA = "DATA"
"""Stands there for the data folder."""

_EARLIER = re.compile(r"\.\./shared/(?:data|models)/")
"""What did before there was one."""

DIGITS = 6
"""Of the numbers in rows that are kept."""

PATIENCE = 5.0
"""Seconds to wait where others are making everything that is left."""


@dataclass(frozen=True)
class Folders:
    """Where models and rows are made, where rows are kept, and where what is not made here lies."""

    work: Path
    results: Path
    data: Path = field(default_factory=data_folder)


class Busy(Exception):
    """Another process is making a step."""


def make(measurements: Sequence[Step], folders: Folders) -> None:
    """Makes what is not kept yet; returns when all is.

    Raises:
      SystemExit: a command failed; it has said why.
    """
    left = [step for step in measurements if not is_kept(step, folders)]
    while left:
        before = len(left)
        for step in list(left):
            try:
                _measure(step, folders)
                left.remove(step)
            except Busy:
                continue
        if len(left) == before:
            time.sleep(PATIENCE)


def is_kept(step: Step, folders: Folders) -> bool:
    """Whether the results hold what this very command measured."""
    told = folders.results / step.folder
    told = told if told.suffix == ".json" else told / manifest_of(step)
    return told.exists() and _is_of(read_json(told)["reproduction"], step)


def _is_of(told: dict, step: Step) -> bool:
    """Whether what is kept beside a result says that this very command made it."""
    return [_EARLIER.sub(f"{DATA}/", word) for word in told["command"]] == step.words(WORK, DATA)


def check_data(steps: Sequence[Step], folders: Folders) -> None:
    """Raises ValueError if the data folder lacks something that the steps read."""
    names = dict.fromkeys(name for step in steps for name in step.outside())
    lacking = [name for name in names if not (folders.data / name).exists()]
    if lacking:
        sets = dict.fromkeys(name.partition("/")[0] for name in lacking)
        raise ValueError(f"not in {folders.data}: {', '.join(lacking)}; get it: {how_to_get(list(sets))}")


def _measure(step: Step, folders: Folders) -> None:
    with _claimed(step, folders):
        if not is_kept(step, folders):
            for need in step.needs():
                make_step(need, folders)
            seconds = _run(step, folders)
            _keep(step, folders, seconds)


def make_step(step: Step, folders: Folders) -> None:
    """Makes a step's folder, and those of what it needs; nothing if it is there.

    Raises:
      Busy: another process is at it.
      SystemExit: a command failed.
    """
    with _claimed(step, folders):
        stamp = folders.work / step.folder / "step.json"
        if stamp.exists() and _is_of(read_json(stamp), step):
            return
        for need in step.needs():
            make_step(need, folders)
        seconds = _run(step, folders)
        write_json(stamp, {"command": step.words(WORK, DATA), "seconds": seconds})


@contextmanager
def _claimed(step: Step, folders: Folders) -> Iterator[None]:
    """Holds a step against other processes; the system lets go of it however this one ends."""
    path = folders.work / "locks" / step.folder.replace("/", "+")
    make_folder(path.parent)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(step.folder) from None
        yield


def _run(step: Step, folders: Folders) -> float:
    """Runs a command in this process and returns its seconds."""
    words = step.words(folders.work, folders.data)
    print("\n$ python -m", *words, flush=True)
    start = time.perf_counter()
    if ":" in step.command:
        module, _, function = step.command.partition(":")
        out = folders.work / step.folder
        make_folder(out.parent if out.suffix else out)
        arguments = step.arguments(folders.work, folders.data) | {"out": out}
        getattr(importlib.import_module(module), function)(**arguments)
    else:
        if code := dera.run(step.command.partition(".")[2], words[1:]):
            raise SystemExit(code)
    seconds = round(time.perf_counter() - start, 1)
    if step.command.startswith("train."):
        manifest = read_json(folders.work / step.folder / "manifest.json")
        if not manifest.get("finished"):  # asked to stop, it has saved
            raise SystemExit(f"stopped: {step.folder}")
        return manifest["seconds"]
    return seconds


def _keep(step: Step, folders: Folders, seconds: float) -> None:
    """Puts a measurement into the results: first what was measured, compressed, then what says it is there."""
    made, kept = (folder / step.folder for folder in (folders.work, folders.results))
    named = ("model", "reference", "aligned")
    lineages = {name: lineage(step, name) for name in named if name in step.options}
    models = {
        name: [read_json(folders.work / one.folder / "step.json") for one in steps]
        for name, steps in lineages.items()
    }
    for steps in lineages.values():
        keep_making(steps, folders)
    told = {"reproduction": {"command": step.words(WORK, DATA), "seconds": seconds, "models": models}}
    make_folder(kept.parent)
    if made.is_file():
        write_json(kept, {"found": portable(read_json(made), folders)} | told)
        return
    _keep_measured(step, folders)
    write_json(kept / manifest_of(step), portable(read_json(made / "manifest.json"), folders) | told)
    if _decodes(step):
        shutil.rmtree(made)


def _compact_rows(made: Path, folders: Folders) -> bytes:
    """Returns a sweep's rows in order, as they are kept."""
    return encode_rows([lean(portable(row, folders)) for row in sort_rows(read_rows(made))])


def portable(value, folders: Folders):
    """Returns a value of JSON with what stands for the folders of this machine in their place, in keys too."""
    if isinstance(value, dict):
        return {portable(name, folders): portable(inner, folders) for name, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner, folders) for inner in value]
    if not isinstance(value, str):
        return value
    names = {str(folders.work): WORK, str(folders.data): DATA}
    for path in sorted(names, key=len, reverse=True):  # one may lie in the other
        value = value.replace(path, names[path])
    return value


def lean(row: dict) -> dict:
    """Returns a row as it is kept, in half the bytes: without token ids, which its text and its length speak for,
    and with what was measured to the six digits that sums in float32 are good for.
    """
    kept = {name: value for name, value in row.items() if name not in ("prompt_tokens", "tokens")}
    return {name: value if name in ("lambda", "beta") else _rounded(value) for name, value in kept.items()}


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def keep_making(steps: Sequence[Step], folders: Folders) -> None:
    """Puts what trainings measured of their steps, and the rows they learned from, into the results, compressed."""
    for step in steps:
        there = _decodes(step) or (folders.work / step.folder / "metrics.jsonl").exists()
        if there and not (folders.results / step.folder / _measured(step)).exists():
            _keep_measured(step, folders)


def _keep_measured(step: Step, folders: Folders) -> None:
    """Puts a sweep's rows, or a training's metrics, into the results, compressed."""
    made, kept = (folder / step.folder for folder in (folders.work, folders.results))
    told = _compact_rows(made, folders) if _decodes(step) else (made / "metrics.jsonl").read_bytes()
    make_folder(kept)
    write_bytes(kept / _measured(step), lzma.compress(told, preset=9 | lzma.PRESET_EXTREME))


def _measured(step: Step) -> str:
    """Returns the name of the file that is kept of what a step measured."""
    return "rows.jsonl.xz" if _decodes(step) else "metrics.jsonl.xz"


def manifest_of(step: Step) -> str:
    """Returns the name under which the manifest of a measurement is kept: that of a training is none of a run."""
    return "manifest.json" if _decodes(step) else "training_manifest.json"


def _decodes(step: Step) -> bool:
    return step.command == "eval.sweep"


def lineage(step: Step, name: str) -> list[Step]:
    """Returns how a model of a step was made: the steps, the first one first."""
    steps: list[Step] = []
    todo = Step("", "", {name: step.options.get(name)}).needs()
    while todo:
        one = todo.pop()
        steps = [one, *(other for other in steps if other != one)]
        todo += one.needs()
    return steps
