"""Services that show trainings, `wandb` and `trackio`: told what metrics.jsonl is told, and never waited for.

Where and as whom they are told is theirs to know, by their own environment variables (WANDB_PROJECT and
WANDB_MODE=offline, TRACKIO_SPACE_ID …). What goes wrong with one is said once; the training goes on without it.
"""

import os
import secrets
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from dera_jax.common.json_files import read_json, write_json
from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown

SERVICES = ("wandb", "trackio")
PROJECTS = {"wandb": "WANDB_PROJECT", "trackio": "TRACKIO_PROJECT"}
"""Environment variables that name the project; it is dera_jax where they say nothing."""
FILE = "report.json"
"""In a run's folder: by which name the service knows it."""


class Report(TypedDict):
    """What report.json holds."""

    id: str


def check_installed(name: str) -> None:
    """Raises ValueError where a service is asked for whose package is not there."""
    # A folder that happens to have its name, as wandb leaves one behind, has no origin.
    if name in SERVICES and getattr(find_spec(name), "origin", None) is None:
        raise ValueError(f"--report-to={name} needs {name}: pip install {name}")


class Service:
    """One run's place in a service."""

    def __init__(self, name: str, out: Path, first: int, tell: Tell = warnings.warn):
        """Begins, or where the run goes on from a checkpoint (`first` > 0) takes up, what is told of OUT.

        Args:
          tell: hears of a service that fails.
        """
        check_installed(name)
        self._failed = tell
        self._name: str | None = name
        """None: nothing more is told."""
        self._module = None
        self._tell(lambda: self._begin(out, first))

    def add(self, step: int, figures: dict[str, float | None], _: dict) -> None:
        """Tells the figures of a step that are numbers."""
        told = {name: value for name, value in figures.items() if name != "step" and value is not None}
        self._tell(lambda: self._module.log(told, step=step))

    def close(self) -> None:
        """Ends what is told; waits until the service has it."""
        self._tell(lambda: self._module.finish())

    def _begin(self, out: Path, first: int) -> None:
        if self._name == "wandb":
            import wandb as module
        else:
            import trackio as module
        manifest = out / "manifest.json"
        given = {
            "project": os.environ.get(PROJECTS[self._name]) or "dera_jax",
            "config": read_json(manifest, dict) if manifest.exists() else {},
            "resume": "allow",
        }
        own = _id(out, first)
        if self._name == "wandb":
            module.init(name=out.name, id=own, dir=str(out), **given)
        else:
            module.init(name=f"{out.name}-{own}", **given)
        self._module = module

    def _tell(self, what: Callable[[], object]) -> None:
        if self._name is None:
            return
        try:
            what()
        except (Exception, SystemExit) as error:  # of any library that they stand on
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._failed(f"warning: {self._name}: {shown(lines[0], 200)}; the training goes on without it")
            self._name = None


def _id(out: Path, first: int) -> str:
    """Returns by which name the service knows the run in OUT; a new one where it begins."""
    path = out / FILE
    if first and path.exists():
        return read_json(path, Report)["id"]
    report: Report = {"id": secrets.token_hex(4)}
    write_json(path, report)
    return report["id"]
