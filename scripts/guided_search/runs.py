"""Runs an experiment's sweeps, and keeps their rows."""

import json
import lzma
import shlex
import subprocess
import sys
from pathlib import Path

from dera_jax.common.files import make_folder, write_bytes
from scripts.guided_search.declare import Experiment, Way


def run_experiment(experiment: Experiment, work: Path, out: Path) -> None:
    """Decodes what is missing, and writes rows and commands into a folder of `out`."""
    folder, kept = work / experiment.name, out / experiment.name
    make_folder(kept)
    for name, records in experiment.prompts.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        make_folder(folder)
        write_bytes(folder / f"{name}.jsonl", lines.encode())
    commands = []
    for way in experiment.ways:
        words = command(experiment, way, folder)
        commands.append(shlex.join(["python", "-m", *words]))
        rows = kept / f"{way.name}.jsonl.xz"
        if rows.is_file():
            continue
        print(commands[-1], flush=True)
        if code := subprocess.run([sys.executable, "-m", *words], check=False).returncode:
            raise SystemExit(code)
        write_bytes(rows, lzma.compress((folder / way.name / "rows.jsonl").read_bytes()))
    write_bytes(kept / "commands.txt", ("\n".join(commands) + "\n").encode())


def command(experiment: Experiment, way: Way, folder: Path) -> list[str]:
    """Returns the words of a sweep."""
    prompts = folder / f"{way.prompts}.jsonl"
    options = {**experiment.shared, **way.options, "prompts": prompts, "out": folder / way.name}
    return ["eval.sweep", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
