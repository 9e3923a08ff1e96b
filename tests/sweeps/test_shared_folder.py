"""Several processes that write to one folder: how they end together, and that no row is lost.

They run as `python -m tests.sweeps.test_shared_folder OUT`.
"""

import json
import random
import socket
import sys
from pathlib import Path

import jax
import pytest

from dera_jax import read_rows
from dera_jax.devices import processes, start
from dera_jax.devices.mesh import own_group, parse_mesh
from dera_jax.results.folder import RunFolder
from dera_jax.sweeps import shared_folder
from tests.support.processes import await_all, launch


def row(prompt_id, **more):
    return {"prompt_id": prompt_id, "sample": 0, "lambda": 1, **more}


def group(lockstep=False):
    mesh = parse_mesh(f"model:{jax.device_count()}" if lockstep else f"data:{jax.device_count()}")
    return own_group(mesh)


def share_folder(path, act, lockstep=False, prepare=lambda folder: None):
    """Returns what went wrong in this process, or the rows that there are in the end."""
    folder = RunFolder(path, {"a": 1}, {"command": ["x"], "time": "now"})
    try:
        with shared_folder.SharedFolder(folder, group(lockstep), prepare) as shared:
            act(shared)
            shared.collect()
            shared.finish({"rows": 4})
        return [r["prompt_id"] for r in read_rows(path)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def process(out):
    """Prints what each situation comes to in this process."""
    start.start_processes()
    out, number, found = Path(out), jax.process_index(), {}
    shared_folder.PATIENCE = 1.0
    found["exchange"] = processes.exchange({"process": number, "text": "λ\n" * 3})
    if processes.leads():
        (out / "strange").mkdir()
        (out / "strange" / "thesis.tex").touch()
    found["stranger"] = share_folder(out / "strange", lambda folder: None)
    found["apart"] = share_folder(out / f"apart-{number}", lambda folder: None)

    def write(folder):
        folder.append([row(10 * number + i) for i in range(2)])

    found["written"] = share_folder(out / "run", write)
    found["again"] = share_folder(out / "run", lambda folder: None)

    def fail(folder):
        write(folder)
        if number == 1:
            raise KeyError("gone")

    found["failed"] = share_folder(out / "failed", fail)
    found["left"] = sorted(path.name for path in (out / "failed").glob("rows*"))
    processes.exchange(None)
    found["rerun"] = share_folder(out / "failed", lambda folder: folder.append([row(30 + number)]))

    def refuse(folder):
        raise ValueError("the rows there have beta 0.1")

    found["prepared"] = share_folder(out / "failed", write, prepare=refuse)
    found["lockstep"] = share_folder(out / "lockstep", write, lockstep=True)

    def fail_in_all(folder):
        raise ValueError("logits are not finite")

    found["found by all"] = share_folder(out / "lockstep", fail_in_all, lockstep=True)
    print("\n" + json.dumps(found))


def slurm(count):
    """Returns what Slurm tells each process, and `auto`."""
    first, ports = 61440, 4096
    with socket.socket() as opened:
        # The port is made of the job's number.
        while opened.connect_ex(("127.0.0.1", first + (job := random.randrange(ports)))) == 0:
            continue
    names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_NODELIST", "JAX_COORDINATOR_ADDRESS")
    told = dict(zip(names, (str(job), str(count), "127.0.0.1", "auto"), strict=True))
    return lambda number: told | dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), str(number))


@pytest.fixture(scope="module")
def situations(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("told"), tmp_path_factory.mktemp("out")
    told = await_all(
        launch(["tests.sweeps.test_shared_folder", out], 2, folder, count=3, tell=slurm(3)), folder
    )
    return out, [json.loads(text.splitlines()[-1]) for text, _ in told]


@pytest.mark.slow
def test_all_hear_what_each_says(situations):
    _, found = situations
    assert [each["exchange"] for each in found] == [[{"process": i, "text": "λ\n" * 3} for i in range(3)]] * 3


def test_what_one_refuses_ends_all_with_one_line(situations):
    out, found = situations
    refused = f"{out}/strange is not empty and holds no run (thesis.tex): choose another --out"
    expected = [f"ValueError: {text}{refused}" for text in ("", "process 0: ", "process 0: ")]
    assert [each["stranger"] for each in found] == expected
    assert [path.name for path in (out / "strange").iterdir()] == ["thesis.tex"]
    assert [each["prepared"] for each in found] == [
        f"ValueError: {text}the rows there have beta 0.1" for text in ("", "process 0: ", "process 0: ")
    ]


def test_processes_that_do_not_share_the_folder_are_told(situations):
    out, found = situations
    for number in (1, 2):
        assert found[number]["apart"] == (
            f"ValueError: does not see what process 0 has written in {out}/apart-{number}: "
            "all processes of a run must share the folder of --out"
        )
    assert found[0]["apart"].startswith("ValueError: process 1: does not see")


def test_files_of_processes_become_one(situations):
    out, found = situations
    for name in ("written", "again"):
        assert [each[name] for each in found] == [[0, 1, 10, 11, 20, 21]] * 3
    assert sorted(path.name for path in (out / "run").iterdir()) == [".lock", "manifest.json", "rows.jsonl"]
    manifest = json.loads((out / "run" / "manifest.json").read_text())
    assert len(manifest["commands"]) == 1 and manifest["extent"] == {"rows": 4}


def test_a_failure_lets_the_others_finish_and_loses_no_row(situations):
    _, found = situations
    assert [each["failed"] for each in found] == [
        "ValueError: process 1: 'gone'",
        "KeyError: 'gone'",
        "ValueError: process 1: 'gone'",
    ]
    assert found[0]["left"] == ["rows-0.jsonl", "rows-1.jsonl", "rows-2.jsonl", "rows.jsonl"]
    assert [each["rerun"] for each in found] == [[0, 1, 10, 11, 20, 21, 30, 31, 32]] * 3


def test_in_lockstep_one_writes_and_all_find_what_is_wrong(situations):
    _, found = situations
    assert [each["lockstep"] for each in found] == [[0, 1]] * 3
    assert [each["found by all"] for each in found] == ["ValueError: logits are not finite"] * 3


if __name__ == "__main__":
    process(sys.argv[1])
