"""Kills commands at their file operations, runs them again, and compares with a run that nobody killed.

A try is its name, `kill | SCENARIO | MOMENT NUMBER [| MOMENT NUMBER]`: where the command is killed, and where
it is killed once more when it goes on. Of two processes the number is followed by `in PROCESS`.
"""

import csv
import hashlib
import json
import random
import re
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.campaign import forks
from tests.campaign.operations import Operations
from tests.campaign.start import LENGTH, LENGTHS, STOPPED, SWEEP

GRACE = 5.0
"""Seconds that the other process has to end by itself before it is killed too, as a scheduler would."""
TRAIN = ["--max-steps=3", "--batch-size=4", "--save-steps=1", "--eval-steps=2"]
SFT = ["--model=base", "--data=completions.jsonl", "--eval-data=texts.jsonl", LENGTH, *TRAIN, "--out=new"]
DPO = [
    "--model=reference",
    "--data=pairs.jsonl",
    "--eval-data=transcripts.jsonl",
    LENGTH,
    "--beta=0.1",
    *TRAIN,
    "--out=new",
]
RLHF = [
    "--model=reference",
    "--data=prompts.jsonl",
    "--eval-data=prompts.txt",
    f"--reward={LENGTHS}",
    "--num-samples=2",
    "--max-new-tokens=8",
    "--beta=0.1",
    *TRAIN,
    "--out=new",
]
REWARD = ["--model=reference", "--data=pairs.jsonl", "--eval-data=pairs.jsonl", LENGTH, *TRAIN, "--out=new"]


@dataclass(frozen=True)
class Scenario:
    """A command that writes a folder."""

    module: str
    words: Sequence[str]
    out: str = "new"
    """Its folder, which may be there before."""
    processes: int = 1


SCENARIOS = {
    "sweep": Scenario("sweep", [*SWEEP, "--lambda=0,0.5,1", f"--reward={LENGTHS}", "--out=new"]),
    "sweep grows": Scenario(
        "sweep", [*SWEEP, "--lambda=0,0.5,1,2", f"--reward={LENGTHS},lexicon:words.txt", "--out=run"], "run"
    ),
    "sweep parted": Scenario("sweep", [*SWEEP, "--lambda=0,0.5,1", f"--reward={LENGTHS}", "--out=parted"], "parted"),
    "score": Scenario("score", ["run", "--reward=keywords:a|the"], "run"),
    "score parted": Scenario("score", ["parted", "--reward=keywords:a|the"], "parted"),
    "sft": Scenario("sft", SFT),
    "sft lora": Scenario("sft", [*SFT, "--lora-r=2"]),
    "sft goes on": Scenario("sft", STOPPED, "stopped"),
    "dpo": Scenario("dpo", DPO),
    "rlhf": Scenario("rlhf", RLHF),
    "ppo": Scenario("rlhf", [*RLHF, "--algorithm=ppo", "--num-mini-batches=1"]),
    "reward": Scenario("reward", REWARD),
    "combine": Scenario("combine", ["--reference=reference", "--aligned=aligned", "--lambda=0.5", "--out=new"]),
    "sweep, two processes": Scenario(
        "sweep", [*SWEEP, "--lambda=0,0.5,1", f"--reward={LENGTHS}", "--out=new", "--mesh=data:2"], processes=2
    ),
    "sft, two processes": Scenario("sft", [*SFT, "--mesh=data:2"], processes=2),
}  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """Where a command is killed."""

    moment: str
    number: int
    process: int = 0

    def __str__(self) -> str:
        return f"{self.moment} {self.number}" + (f" in {self.process}" if self.process else "")


@dataclass(frozen=True)
class Try:
    """A command, and where it is killed, once or twice."""

    scenario: str
    kills: tuple[Kill, ...]

    @property
    def name(self) -> str:
        """What the try is called and made from."""
        return " | ".join(["kill", self.scenario, *map(str, self.kills)])


@dataclass(frozen=True)
class Found:
    """What came of a try."""

    tried: Try
    reached: bool
    """Whether the command was killed: threads do not always do the same in the same order."""
    where: str
    """The operations that it was killed at."""
    fault: str
    """`lost` (the command does not go on), `different` (it ends in other files), or nothing."""
    said: str


def parse(name: str) -> Try:
    """Returns the try of a name."""
    _, scenario, *places = name.split(" | ")
    found = [re.fullmatch(r"(\w+) (\d+)(?: in (\d+))?", place) for place in places]
    if scenario not in SCENARIOS or not found or not all(found):
        raise ValueError(f"no try: {name!r}; expected kill | SCENARIO | MOMENT NUMBER")
    return Try(scenario, tuple(Kill(m[1], int(m[2]), int(m[3] or 0)) for m in found))


class Kills:
    """Runs tries one after the other."""

    def __init__(self, home: Path, shelf: Path):
        """Tries happen in HOME; SHELF has the valid files."""
        self.home, self.shelf = home, shelf
        home.mkdir(parents=True, exist_ok=True)
        self._whole: dict[str, tuple[dict, list[list[str]]]] = {}

    def whole(self, scenario: str) -> tuple[dict, list[list[str]]]:
        """Returns what an uninterrupted run leaves, and the operations of each process.

        Raises:
          RuntimeError: it does not end well.
        """
        if scenario not in self._whole:
            sandbox = self._sandbox(scenario)
            codes = self._run(scenario, sandbox, None)
            if set(codes) != {0}:
                raise RuntimeError(f"{scenario}: ended with {codes}: {self._said()}")
            count = SCENARIOS[scenario].processes
            logs = [self._log(number).read_text().splitlines() for number in range(count)]
            self._whole[scenario] = contents(sandbox / SCENARIOS[scenario].out), logs
        return self._whole[scenario]

    def all_tries(self, scenario: str) -> list[Try]:
        """Returns a try for each moment of each operation of each process."""
        tries = []
        for process, log in enumerate(self.whole(scenario)[1]):
            for number, line in enumerate(log, 1):
                moments = ["before", "after", *(["half"] if line.split()[0] in ("write", "save") else [])]
                tries += [Try(scenario, (Kill(moment, number, process),)) for moment in moments]
        return tries

    def run(self, tried: Try) -> Found:
        """Returns what came of a try."""
        expected, _ = self.whole(tried.scenario)
        sandbox, reached, where = self._sandbox(tried.scenario), [], []
        for kill in tried.kills:
            codes = self._run(tried.scenario, sandbox, kill)
            reached.append(codes[kill.process] == "signal 9")
            where.append((self._log(kill.process).read_text().splitlines() or ["nothing"])[-1])
            if codes[kill.process] not in ("signal 9", 0) and (
                kill is tried.kills[0] or codes[kill.process] != 2
            ):
                return Found(tried, any(reached), ", ".join(where), "lost", f"{codes}: {self._said()}")
        scenario = tried.scenario
        given = SCENARIOS[scenario]
        alone = given.processes > 1 and given.module == "sweep" and tried.kills[0].number % 2 == 1
        codes = self._run(scenario, sandbox, None, processes=1 if alone else None)
        found = contents(sandbox / given.out)
        if alone:  # the rows are those of any number of processes, what is told of them is not
            expected, found = ({"rows.jsonl": each.get("rows.jsonl")} for each in (expected, found))
        difference = compare(expected, found)
        # Where a finished folder is refused, as combine does, it must be whole.
        if set(codes) != {0} and not (set(codes) == {2} and not difference):
            return Found(tried, all(reached), ", ".join(where), "lost", f"{codes}: {self._said()}")
        return Found(tried, all(reached), ", ".join(where), "different" if difference else "", difference)

    def _sandbox(self, scenario: str) -> Path:
        shutil.rmtree(self.home / "try", ignore_errors=True)
        sandbox, out = self.home / "try" / "here", SCENARIOS[scenario].out
        sandbox.mkdir(parents=True)
        for path in self.shelf.iterdir():
            if path.name != out:
                (sandbox / path.name).symlink_to(path)
        if (self.shelf / out).exists():
            shutil.copytree(self.shelf / out, sandbox / out)
        return sandbox

    def _log(self, process: int) -> Path:
        return self.home / f"operations-{process}"

    def _run(
        self, scenario: str, sandbox: Path, kill: Kill | None, processes: int | None = None
    ) -> list[int | str]:
        """Returns the exit code of each process; the one that is to be killed at an operation, is."""
        given = SCENARIOS[scenario]
        count = processes or given.processes
        words = [word for word in given.words if count > 1 or not word.startswith("--mesh")]
        if count > 1:
            words += [f"--coordinator=127.0.0.1:{_free_port()}", f"--num-processes={count}"]
        pids = []
        for process in range(count):
            at = kill if kill and kill.process == process else Kill("before", 0)
            own = [*words, *([f"--process-id={process}"] if count > 1 else [])]
            operations = replace_log(sandbox / given.out, self._log(process), at)
            act = partial(self._act, given, own, sandbox, operations)
            pids.append(forks.fork(act, self.home / "run", f"-{process}"))
        return _await_all(pids)

    @staticmethod
    def _act(given: Scenario, words: list[str], sandbox: Path, operations: tuple) -> int:
        watched = Operations(*operations)
        watched.watch()
        return forks.call(f"dera_jax.commands.{given.module}:main", words, str(sandbox), {})

    def _said(self) -> str:
        """Returns the last lines on stderr of the processes that ran last."""
        told = []
        for path in sorted(self.home.glob("run-*.err")):
            lines = path.read_text(errors="replace").strip().splitlines()
            told.append(lines[-1] if lines else "")
        return "; ".join(told)[-300:]


def replace_log(folder: Path, log: Path, at: Kill) -> tuple:
    """Returns the arguments of `Operations`, its log emptied."""
    log.write_text("")
    return folder, log, at.number, at.moment


def _await_all(pids: list[int]) -> list[int | str]:
    """Returns how processes have ended; where one was killed, the others have a while to end too."""
    codes: dict[int, int | str] = {}
    first = forks.wait_any(pids)
    codes |= first
    rest = [pid for pid in pids if pid not in codes]
    deadline = time.monotonic() + GRACE
    if rest and "signal 9" in codes.values():
        while rest and time.monotonic() < deadline:
            codes |= forks.poll(rest)
            rest = [pid for pid in rest if pid not in codes]
            time.sleep(0.05)
        for pid in rest:
            forks.kill(pid)
    codes |= {pid: forks.wait(pid) for pid in rest}
    return [codes[pid] for pid in pids]


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def contents(folder: Path) -> dict:
    """Returns what lies in a folder, without what no two runs have in common: times and commands."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        # Of a checkpoint's arrays, whose files have names drawn by lot, the record has checksums.
        if path.is_file() and path.name != ".lock" and path.relative_to(folder).parts[2:3] != ("state",)
    }


TIMES = ("provenance", "commands", "resources", "time")


def _content(path: Path):
    if path.name == "rows.jsonl":
        return sorted(path.read_text().splitlines())
    if path.name == "metrics.jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "record.json":
        return {name: json.loads(path.read_text())[name] for name in ("step", "leaves", "sums")}
    if path.name == "manifest.json":
        return _timeless(json.loads(path.read_text()))
    if path.name == "summary.csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    if path.name == "speed.jsonl":
        return "speed"
    if path.suffix == ".png":
        return (
            "PNG"
            if path.read_bytes().startswith(b"\x89PNG") and path.read_bytes().endswith(b"IEND\xaeB`\x82")
            else "broken"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(found):
    if not isinstance(found, dict):
        return found
    return {n: _timeless(v) for n, v in found.items() if n not in TIMES and not n.endswith("seconds")}


def compare(expected: dict, found: dict) -> str:
    """Returns what differs."""
    told = [f"{name} is missing" for name in expected.keys() - found.keys()]
    told += [f"{name} is left" for name in found.keys() - expected.keys()]
    told += [f"{name} differs{_where(expected[name], found[name])}" for name in expected.keys() & found.keys()
             if expected[name] != found[name]]  # fmt: skip
    return "; ".join(sorted(told))[:300]


def _where(one, other) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return ", ".join(f" in {name}{_where(one.get(name), other.get(name))}" for name in names)
    if isinstance(one, list) and isinstance(other, list):
        return f" ({len(one)} there, {len(other)} found)"
    return f" ({one!s:.40}, found {other!s:.40})"


def in_turn(names: list[str], count: int, seed: int) -> list[str]:
    """Returns the names of the scenarios that `count` kills fall to."""
    return random.Random(seed).sample(names, min(count, len(names)))


def sample(tries: dict[str, list[Try]], count: int, seed: int) -> list[Try]:
    """Returns `count` tries, of all scenarios in turn; every fifth is killed once more when it goes on."""
    draw = random.Random(seed)
    pools = {name: draw.sample(each, len(each)) for name, each in tries.items()}
    chosen: list[Try] = []
    while len(chosen) < count and any(pools.values()):
        for name in draw.sample(list(pools), len(pools)):
            if pools[name] and len(chosen) < count:
                chosen.append(pools[name].pop())
    if count >= sum(map(len, tries.values())):
        return chosen
    return [replace(each, kills=(*each.kills, Kill("before", draw.randint(1, 40)))) if number % 5 == 4 else each
            for number, each in enumerate(chosen)]  # fmt: skip
