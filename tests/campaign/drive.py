"""Runs bad inputs, each with its own copy of the valid files, and judges what came of them."""

import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import inputs, judge_server, machines, words
from tests.campaign.commands import COMMANDS, REFUSED, Command
from tests.campaign.forks import Ended, Job, Worker
from tests.campaign.hostile_code import ENDS

LONGEST = 1000
"""Characters of a line on stderr: more is no line to read."""
UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
LEFTOVER = re.compile(r"(\..+\.tmp|.+\.partial|.+\.saving|.+\.gone|.+\.orbax-checkpoint-tmp.*)")
MAY_APPEAR = re.compile(r"(.*/)?(\.lock|__pycache__(/.*)?)")
PRINTS = ("special prints", "special writes", "special import: prints", "special shape: prints")
"""Changes after which a user's own code writes to the terminal what it likes."""
FAULTS = (
    "traceback",
    "code",
    "hang",
    "changed",
    "leftover",
    "raw",
    "long",
    "lines",
    "key",
    "pwned",
    "broken",
    "silent",
)
"""What an input can end in, of which none may be:

  traceback  a traceback, or an exception that went through
  code       an exit code beside 0 and 2, or death by a signal
  hang       no end, or no end of its memory
  changed    a file that is not the command's to write changed; or one of a run, whose command was refused
  leftover   a temporary file stays
  raw        control characters on the terminal that the command was given
  long       a line of more than 1000 characters on stderr
  lines      exit code 2 with no line `error: …` at the end, or with two of them
  key        the key of a judge's server in output or files
  pwned      code of the input was run that nobody asked for
  broken     exit code 0, but what was written is not whole
  silent     exit code 0, and not a word of what was done
"""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    case: inputs.Case
    code: int | str
    faults: tuple[str, ...]
    said: str
    """The last line on stderr, or what went wrong."""

    @property
    def refused(self) -> bool:
        """Whether the input was refused as it should be."""
        return self.code == 2 and not self.faults

    @property
    def accepted(self) -> bool:
        """Whether it was of use, and what was written is whole."""
        return self.code == 0 and not self.faults


class Drive:
    """Runs cases one after the other."""

    def __init__(self, home: Path):
        """Makes the valid files in HOME/shelf."""
        self.home, self.shelf = home, home / "shelf"
        self._worker: Worker | None = None
        self.shelf.mkdir(parents=True)
        ended = self._run(Job("tests.campaign.start:make", [], str(self.shelf)))
        if ended.code != 0:
            raise RuntimeError(f"the valid files could not be made:\n{ended.out}{ended.err}")

    def run(self, case: inputs.Case) -> Outcome:
        """Returns what came of a case."""
        sandbox = self._sandbox()
        given = COMMANDS[case.command].words
        if case.kind == "words":
            given = words.changed(case.command, case.change)
            _odd_files(sandbox)
        elif case.kind != "machine":
            inputs.spoil(self.shelf, sandbox, case)
        before = snapshot(sandbox)
        if case.kind == "machine":
            ended = machines.run(case.command, case.change, sandbox, self.home / "spawned")
        else:
            ended = self._run(self._job(case.command, given, sandbox))
        after = snapshot(sandbox) if sandbox.exists() else before
        outcome = judge(case, ended, sandbox, before, after)
        shutil.rmtree(sandbox, ignore_errors=True)
        return outcome

    def control(self, command: str) -> Outcome:
        """Returns what comes of a command's own words on the valid files."""
        sandbox = self._sandbox()
        before = snapshot(sandbox)
        ended = self._run(self._job(command, COMMANDS[command].words, sandbox))
        case = inputs.Case("valid", command, "none")
        outcome = judge(case, ended, sandbox, before, snapshot(sandbox))
        if outcome.code != (2 if command in REFUSED else 0):
            outcome = Outcome(case, outcome.code, (*outcome.faults, "code"), outcome.said)
        shutil.rmtree(sandbox, ignore_errors=True)
        return outcome

    def end(self) -> None:
        """Ends the process that runs the commands."""
        if self._worker:
            self._worker.end()

    def _sandbox(self) -> Path:
        sandbox = self.home / "case" / "here"
        shutil.rmtree(sandbox.parent, ignore_errors=True)
        sandbox.parent.mkdir()
        return Path(shutil.copytree(self.shelf, sandbox, symlinks=True))

    def _job(self, command: str, given: list[str], sandbox: Path) -> Job:
        module = COMMANDS[command].module
        if any("URL" in word for word in given):
            given = [f"dera_jax.commands.{module}", *given]
            return Job("tests.campaign.judge_server:main", given, str(sandbox))
        return Job(COMMANDS[command].main, given, str(sandbox))

    def _run(self, job: Job) -> Ended:
        if self._worker is None or not self._worker.alive:
            self.end()
            self._worker = Worker(self.home / "worker")
        return self._worker.run(job)


def _odd_files(sandbox: Path) -> None:
    """Adds what odd words name."""
    (sandbox / "folder").mkdir()
    (sandbox / "folder.jsonl").mkdir()
    for name in ("fifo", "fifo.jsonl"):
        os.mkfifo(sandbox / name)
    for name, to in (
        ("zero", "/dev/zero"),
        ("zero.jsonl", "/dev/zero"),
        ("dangling", "nowhere"),
        ("loop", "loop"),
    ):
        (sandbox / name).symlink_to(to)


def snapshot(folder: Path) -> dict[str, str]:
    """Returns what lies in a folder: the hash of each file, what other things are; lines that are broken."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            told = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.suffix == ".jsonl":
                found |= dict.fromkeys(_broken_lines(path), "line")
        else:
            told = f"link to {os.readlink(path)}" if stat.S_ISLNK(mode) else stat.filemode(mode)[0]
        found[str(path.relative_to(folder))] = told
    return found


def judge(case: inputs.Case, ended: Ended, sandbox: Path, before: dict, after: dict) -> Outcome:
    """Returns which rules were broken."""
    command = COMMANDS[case.command]
    faults, notes = [], []
    shown = re.sub(r"[^\n]*\r(?!\n)", "", ended.err)  # progress bars are written over
    if ended.code == "traceback" or "Traceback (most recent call last)" in ended.err:
        faults.append("traceback")
    elif ended.code in ("hang", "memory"):
        faults.append("hang")
    elif ended.code not in (0, 2) and not _ends_itself(case):
        faults.append("code")
    changed = _changed(command, case, ended.code, before, after)
    if changed:
        faults.append("changed")
        notes.append(f"changed: {', '.join(sorted(changed)[:4])}")
    if ended.code in (0, 2) and (
        left := [p for p in after.keys() - before.keys() if LEFTOVER.fullmatch(Path(p).name)]
    ):
        faults.append("leftover")
        notes.append(f"left: {', '.join(sorted(left)[:4])}")
    if (found := _raw(ended)) and case.change not in PRINTS:
        faults.append("raw")
        notes.append(f"raw {found!r}")
    if any(len(line) > LONGEST for line in shown.splitlines()):
        faults.append("long")
    if ended.code == 2 and not _one_line(shown, case):
        faults.append("lines")
    faults += _secrets(ended, sandbox, after)
    if ended.code == 0 and (problem := _broken(command, sandbox, after, before)):
        faults.append("broken")
        notes.append(problem)
    if ended.code == 0 and not ended.out.strip() and not (_ends_itself(case) or case.kind == "machine"):
        faults.append("silent")
    said = (ended.err.strip().splitlines() or [""])[-1]
    return Outcome(case, ended.code, tuple(faults), "; ".join([*notes, said])[:300])


def _ends_itself(case: inputs.Case) -> bool:
    return (
        case.kind.endswith("module") and case.change.removeprefix("special ").removeprefix("import: ") in ENDS
    )


def _one_line(shown: str, case: inputs.Case) -> bool:
    if case.change in ("stderr closed", "stderr full", "special closes"):
        return True
    found = [line for line in shown.splitlines() if line.strip()]
    errors = [line for line in found if "error: " in line[:40]]
    return len(errors) == 1 and found[-1] == errors[0]


def _raw(ended: Ended) -> str:
    text = ended.err + ended.out
    return "".join(dict.fromkeys(UNSAFE.findall(text)))


def _changed(command: Command, case: inputs.Case, code, before: dict, after: dict) -> set[str]:
    """Returns the files that are not the command's to change, and are not as they were."""
    if case.kind in ("reward's module", "rule's module", "machine") and not after:
        return set()
    differing = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    differing = {path for path in differing if not path.startswith("broken line ")}
    differing = {path for path in differing if not MAY_APPEAR.fullmatch(path)}
    if case.kind == "words":
        # Odd words name other outputs; what is there stays as it is.
        differing = {path for path in differing if path in before}
    allowed = command.writes
    if code == 2 and case.kind not in ("reward's module", "rule's module", "answer"):
        allowed = tuple(path for path in allowed if path not in command.runs)
    return {path for path in differing if not any(path == a or path.startswith(f"{a}/") for a in allowed)}


def _secrets(ended: Ended, sandbox: Path, after: dict) -> list[str]:
    found = []
    key = judge_server.KEY
    kept = any(
        key.encode() in (sandbox / path).read_bytes()
        for path, told in after.items()
        if len(told) == 64 and (sandbox / path).exists()
    )
    if key in ended.out + ended.err or kept:
        found.append("key")
    if (sandbox / "pwned").exists():
        found.append("pwned")
    return found


def _broken(command: Command, sandbox: Path, after: dict, before: dict) -> str | None:
    """Returns what is wrong with what a successful command has written."""
    for path in after:
        file = sandbox / path
        written = any(path == a or path.startswith(f"{a}/") for a in command.writes) and after[
            path
        ] != before.get(path)
        if not written or not file.is_file() or file.is_symlink():
            continue
        try:
            _check_file(file)
            if new := [line for line in _broken_lines(file) if line not in before]:
                return f"{path}: {new[0][:80]}"
        except (ValueError, OSError) as error:
            return f"{path}: {error}"
    return None


def _check_file(file: Path) -> None:
    if file.suffix == ".json":
        json.loads(file.read_text(), parse_constant=_refuse_constant)
    elif file.suffix == ".png" and not file.read_bytes().startswith(b"\x89PNG"):
        raise ValueError("no PNG")
    elif file.suffix == ".safetensors":
        import numpy as np
        from safetensors.numpy import load_file

        for name, array in load_file(file).items():
            if not np.isfinite(array.astype(np.float64)).all():
                raise ValueError(f"{name} is not finite")


def _broken_lines(file: Path) -> list[str]:
    """Returns the lines that are no JSON, as names for `snapshot`: those of the input itself are no fault."""
    found = []
    if file.suffix == ".jsonl":
        for line in file.read_bytes().split(b"\n")[:-1]:
            try:
                json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                found.append(f"broken line {line[:200]!r}")
    return found


def _refuse_constant(text: str):
    raise ValueError(f"{text} is no JSON")
