"""Commands as real processes on machines as they are: no UTF-8, no home, closed or full outputs."""

import os
import resource
import shutil
from pathlib import Path

from tests.campaign.commands import COMMANDS
from tests.campaign.forks import Ended, Job, spawn

ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "posix": {"LANG": "C", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "home that is none": {"HOME": "/nowhere/at/all", "XDG_CACHE_HOME": None},
    "no cache": {"XDG_CACHE_HOME": "/proc/nothing"},
    "cache that is a file": {"XDG_CACHE_HOME": "/etc/passwd"},
    "no plots": {"MPLBACKEND": "nonsense"},
    "narrow": {"COLUMNS": "1", "LINES": "1"},
    "no terminal": {"TERM": None},
    "no temporary folder": {"TMPDIR": "/nowhere/at/all"},
    "hash seed": {"PYTHONHASHSEED": "12345"},
    "optimized": {"PYTHONOPTIMIZE": "2"},
    "no path": {"PATH": None},
}


def run(command: str, machine: str, sandbox: Path, home: Path) -> Ended:
    """Returns how a command ended there."""
    module = COMMANDS[command].module
    package = "train" if module in ("sft", "dpo", "reward", "rlhf") else "eval"
    main = "dera_jax.commands.dera" if module == "dera" else f"{package}.{module}"
    words = COMMANDS[command].words
    if machine.startswith("help "):
        words, machine = [*(["plot"] if module == "dera" else []), "--help"], machine.removeprefix("help ")
    # Programs are kept where users have them kept: whether they can be is what some machines are about.
    environment = {"JAX_COMPILATION_CACHE_DIR": None} | ENVIRONMENTS.get(machine, {})
    job = Job(main, words, str(sandbox), environment)
    options = {name: act for name, act in _streams(machine).items() if act is not None}
    try:
        if machine == "reader gone":
            return _with_reader_gone(job, home)
        return spawn(job, home, **options)
    finally:
        for opened in options.values():
            if hasattr(opened, "close"):
                opened.close()


def _streams(machine: str) -> dict:
    before = {
        "stdout closed": lambda: os.close(1),
        "stderr closed": lambda: os.close(2),
        "stdin closed": lambda: os.close(0),
        "few files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        "folder gone": lambda: shutil.rmtree(os.getcwd()),
    }.get(machine)
    return {
        "preexec_fn": before,
        "stdout": open("/dev/full", "wb") if machine == "stdout full" else None,
        "stderr": open("/dev/full", "wb") if machine == "stderr full" else None,
    }


def _with_reader_gone(job: Job, home: Path) -> Ended:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        return spawn(job, home, stdout=gone)
