"""What a training run tells: metrics.jsonl, speed.jsonl, TensorBoard or a service, and the progress bar.

metrics.jsonl depends on data and seed alone, a line a step; how long things took is in speed.jsonl. A
run that goes on from a checkpoint first cuts its files to what they held when it was saved.
"""

import json
import math
import os
import secrets
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from dera_jax.common.files import open_to_append
from dera_jax.common.json_files import encode_json
from dera_jax.common.notes import Tell
from dera_jax.training.services import Service

FILES = ("metrics.jsonl", "speed.jsonl", "samples.jsonl")
SHOWN = ("loss", "reward", "kl", "accuracy", "eval_loss")
"""On the progress bar."""


class RunLog:
    """The files of one run. A context manager."""

    def __init__(
        self,
        out: Path,
        max_steps: int,
        report_to: str = "none",
        sizes: dict | None = None,
        writes: bool = True,
        tell: Tell | None = None,
    ):
        """Opens the files.

        Args:
          sizes: bytes to keep of each file, as `sizes()` gave them; None begins anew.
          writes: whether this process is the one that does.
          tell: hears of a service that fails, beside a bar that shows the progress. None: no bar, and
            a warning.
        """
        out.mkdir(parents=True, exist_ok=True)
        kept, report_to = sizes or {}, report_to if writes else "none"
        self._steps = self._first = first = kept.get("steps", 0)
        with ExitStack() as opened:
            self._files = {
                name: opened.enter_context(_opened(out / name, kept.get(name, 0))) for name in FILES if writes
            }
            self._board: _Board | Service | None = None
            if report_to == "tensorboard":
                self._board = _Board(out / "tensorboard", first)
            elif report_to != "none":
                self._board = Service(report_to, out, first, tell or warnings.warn)
            if self._board:
                opened.callback(self._board.close)
            hidden = tell is None or not writes
            self._bar = tqdm(total=max_steps, initial=first, unit="step", dynamic_ncols=True, disable=hidden)
            opened.callback(self._bar.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self._opened.close()

    def tell_compiling(self) -> None:
        """Says that the next step takes longer: batches of its shape have not been there yet."""
        self._bar.set_postfix_str("compiling")

    def write(self, step: int, logged: dict[str, float], seconds: float, metrics: dict[str, float]) -> None:
        """Writes one step.

        Args:
          logged: figures of the batch. Those that end in `seconds` go to speed.jsonl.
          seconds: that the step took.
          metrics: of the update.
        """
        times = {name: value for name, value in logged.items() if name.endswith("seconds")}
        line = {"step": step} | metrics | {name: v for name, v in logged.items() if name not in times}
        speed = {"seconds": round(seconds, 4)}
        if "tokens" in line:
            speed["tokens_per_second"] = round(line["tokens"] / seconds, 1)
        line = {name: _plain(value) for name, value in line.items()}
        self._append("metrics.jsonl", line)
        self._append("speed.jsonl", {"step": step} | speed | times)
        self._steps = step + 1
        if self._board:
            self._board.add(step, line, speed | times)
        shown = {name: f"{line[name]:.3g}" for name in SHOWN if line.get(name) is not None}
        if "tokens_per_second" in speed:
            shown["tokens/s"] = f"{speed['tokens_per_second']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        if step == self._first:
            # Compiled in it: the rate, and what is left, are those of the steps behind.
            self._bar.n = self._bar.initial = self._bar.last_print_n = step + 1
            self._bar.unpause()
            self._bar.refresh()
        else:
            self._bar.update()

    def sample(self, step: int, samples: list[dict]) -> None:
        """Appends texts that the policy writes after `step` steps."""
        for each in samples:
            self._append("samples.jsonl", {"step": step} | each)

    def sizes(self) -> dict[str, int]:
        """Returns what a checkpoint has to know of the files."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()} | {"steps": self._steps}

    def _append(self, name: str, line: dict) -> None:
        if name not in self._files:
            return
        self._files[name].write(encode_json(line) + b"\n")
        self._files[name].flush()


def read_metrics(out: Path) -> list[dict]:
    """Returns the lines of OUT/metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _opened(path: Path, size: int):
    """Returns the file open at its end, cut to `size` bytes."""
    with ExitStack() as opened:
        file = opened.enter_context(open_to_append(path))
        if file.tell() < size:
            raise ValueError(
                f"{path}: expected at least the {size} bytes of the checkpoint, found {file.tell()}"
            )
        # A file that was changed since may have the middle of a line there.
        if size and not _ends_line(path, size):
            raise ValueError(f"{path}: expected the end of a line at byte {size}, as the checkpoint left it")
        file.truncate(size)
        file.seek(size)
        opened.pop_all()
    return file


def _ends_line(path: Path, size: int) -> bool:
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _plain(value: float) -> float | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None


class _Board:
    """TensorBoard's file of events; a step is on disk when `add` returns."""

    def __init__(self, folder: Path, first: int):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar
        except ImportError as error:
            raise ValueError(
                "--report-to=tensorboard needs tensorboardX: pip install tensorboardX"
            ) from error
        self._event, self._scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        # The name tells the second only, in which another run may have begun.
        self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
        # TensorBoard then hides what a run before this one has told from here on.
        log = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=log))

    def add(self, step: int, figures: dict[str, float | None], speed: dict[str, float]) -> None:
        """Writes the figures of a step."""
        for name, value in (figures | speed).items():
            if name != "step" and isinstance(value, int | float):
                told = self._scalar(name, value)
                self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=told))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
