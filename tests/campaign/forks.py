"""Processes that have imported everything and started no device: a command in one takes a second.

JAX's backend starts in the child, never before the fork, so every child is as good as a new process.
"""

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LARGEST_FILE = 2**30
"""Bytes that a command may write to one file."""
MOST_MEMORY = 6 * 2**30
"""Bytes in memory at which a command is ended: bad input must not fill a machine."""
MOST_CPU, MOST_IDLE, MOST_WALL = 90.0, 45.0, 900.0
"""Seconds of work, without any work, and in all, at which a command counts as hanging. Generous: the
slowest good one takes ten, and the machine may be busy."""


@dataclass(frozen=True)
class Job:
    """A command to run, and where."""

    main: str
    """`module:function`, called with the words."""
    words: list[str]
    folder: str
    """Current folder."""
    environment: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | str
    """Exit code; `traceback`, `hang`, `memory`, or `signal 9`."""
    out: str
    err: str


def import_all() -> None:
    """Imports all that a command may import, so that its children need not."""
    sys.path[:0] = [str(ROOT)] * (str(ROOT) not in sys.path)
    import dera_jax

    for module in pkgutil.walk_packages(dera_jax.__path__, "dera_jax."):
        importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "matplotlib.backends.backend_agg", "requests", "pyarrow.parquet"):
        importlib.import_module(name)
    from jax._src import xla_bridge

    assert not xla_bridge._backends, "a device was started before the fork"


def fork(act: Callable[[], int], folder: Path, name: str = "") -> int:
    """Returns the process that runs `act`, its output in files beside the folder (`output_paths`)."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        _die_with_parent()
        _redirect(*output_paths(folder, name))
        code = act()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        _flush()
        _leave_the_others()
        os._exit(code)


def _leave_the_others() -> None:
    """Ends this process's part in a run of several, as JAX does where Python ends; the last one waits for all."""
    import jax

    if jax.distributed.is_initialized():
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def _die_with_parent() -> None:
    """Makes this process one of its own group that does not outlive the campaign."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        os._exit(1)


def output_paths(folder: Path, name: str = "") -> tuple[Path, Path]:
    """Returns where the output of a command in `folder` goes."""
    return folder.with_name(f"{folder.name}{name}.out"), folder.with_name(f"{folder.name}{name}.err")


def call(main: str, words: list[str], folder: str, environment: dict[str, str | None]) -> int:
    """Returns the exit code of a command, run here."""
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    module, _, function = main.partition(":")
    code = getattr(importlib.import_module(module), function or "main")(list(words))
    return code if isinstance(code, int) else 0


def _redirect(out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    # What tests capture is not where a process writes.
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


class Worker:
    """A process that runs one job after the other, so that programs once compiled stay."""

    def __init__(self, home: Path):
        """Starts it; its output is kept in files in `home`."""
        self.jobs, self.home = 0, home
        here, there = os.pipe(), os.pipe()
        home.mkdir(parents=True, exist_ok=True)
        if (pid := os.fork()) == 0:
            os.close(here[1])
            os.close(there[0])
            try:
                _die_with_parent()
                resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
                _serve(here[0], there[1], home)
            finally:
                os._exit(0)
        os.close(here[0])
        os.close(there[1])
        self.pid, self._in, self._out = pid, here[1], there[0]

    def run(self, job: Job) -> Ended:
        """Returns how a job ended; the process may be gone with it."""
        self.jobs += 1
        os.write(self._in, json.dumps(asdict(job)).encode() + b"\n")
        code = self._wait()
        texts = [path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
                 for path in output_paths(self.home / "job")]  # fmt: skip
        return Ended(code, *texts)

    @property
    def alive(self) -> bool:
        """Whether it can take another job, and is not worn out."""
        return self.pid > 0 and _memory(self.pid) < MOST_MEMORY / 2

    def end(self) -> None:
        """Ends the process, if it is still there."""
        if self.pid > 0:
            kill(self.pid)
            os.waitpid(self.pid, 0)
            os.close(self._in)
            os.close(self._out)
        self.pid = 0

    def _wait(self) -> int | str:
        watch = Watch(self.pid)
        while True:
            ready, _, _ = select.select([self._out], [], [], 0.25)
            if ready:
                answer = os.read(self._out, 100)
                if answer:
                    told = json.loads(answer)
                    return told
                _, status = os.waitpid(self.pid, 0)
                self.pid = 0
                return ended_by(status)
            if problem := watch.problem():
                self.end()
                return problem


def _serve(jobs: int, answers: int, home: Path) -> None:
    modules, path = set(sys.modules), list(sys.path)
    environment = dict(os.environ)
    with open(jobs, "rb") as lines:
        for line in lines:
            _redirect(*output_paths(home / "job"))
            try:
                code = call(**json.loads(line))
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
            except BaseException:
                traceback.print_exc()
                code = "traceback"
            _flush()
            # The next command's reward is another file of the same name.
            for name in [n for n in sys.modules if n not in modules and _foreign(n)]:
                del sys.modules[name]
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
            os.write(answers, json.dumps(code).encode())


def _foreign(name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", None) or ""
    return not file.startswith((str(ROOT), sys.prefix, sys.base_prefix))


class Watch:
    """Looks at a process from outside: does it hang, does it fill memory?"""

    def __init__(self, pid: int):
        """Starts the clocks."""
        self.pid, self.start = pid, time.monotonic()
        self.cpu = self.last = _cpu(pid)
        self.worked = self.start

    def problem(self) -> str | None:
        """Returns `hang` or `memory`, or None while all is well."""
        now, cpu = time.monotonic(), _cpu(self.pid)
        if cpu > self.last:
            self.last, self.worked = cpu, now
        if _memory(self.pid) > MOST_MEMORY:
            return "memory"
        hangs = cpu - self.cpu > MOST_CPU or now - self.worked > MOST_IDLE or now - self.start > MOST_WALL
        return "hang" if hangs else None


def _cpu(pid: int) -> float:
    """Returns the seconds that a process has worked, in steps of 0.2: what idle threads take does not count."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) // 20 / 5


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def kill(pid: int) -> None:
    """Kills a process of `fork` or `Worker`, and those that it has started."""
    for act in (os.killpg, os.kill):
        try:
            act(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def wait(pid: int) -> int | str:
    """Returns how a process of `fork` has ended, which is ended here if it hangs."""
    watch = Watch(pid)
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return ended_by(status)
        if problem := watch.problem():
            kill(pid)
            os.waitpid(pid, 0)
            return problem
        time.sleep(0.05)


def poll(pids: list[int]) -> dict[int, int | str]:
    """Returns how those of some processes have ended that have."""
    found = {}
    for pid in pids:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found[pid] = ended_by(status)
    return found


def wait_any(pids: list[int]) -> dict[int, int | str]:
    """Returns how the first of some processes to end has ended; those that hang are ended here."""
    watches = [Watch(pid) for pid in pids]
    while not (found := poll(pids)):
        for watch in watches:
            if watch.problem():
                kill(watch.pid)
        time.sleep(0.05)
    return found


def ended_by(status: int) -> int | str:
    """Returns a wait status as an exit code, or as `signal N`."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else code


def spawn(job: Job, home: Path, **options) -> Ended:
    """Runs a job as a process of its own, as a user does."""
    home.mkdir(parents=True, exist_ok=True)
    names = {name: value for name, value in job.environment.items() if value is not None}
    environment = {k: v for k, v in os.environ.items() if k not in job.environment} | names
    environment["PYTHONPATH"] = str(ROOT)
    with open(home / "job.out", "wb") as out, open(home / "job.err", "wb") as err:
        options = {"stdout": out, "stderr": err} | options
        process = subprocess.Popen(
            [sys.executable, "-m", job.main, *job.words], cwd=job.folder, env=environment,
            start_new_session=True, **options,
        )  # fmt: skip
        watch, problem = Watch(process.pid), None
        while process.poll() is None and not (problem := watch.problem()):
            time.sleep(0.1)
        if problem:
            kill(process.pid)
            process.wait()
    code = problem or (process.returncode if process.returncode >= 0 else f"signal {-process.returncode}")
    return Ended(
        code, *((home / f"job.{name}").read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
    )
