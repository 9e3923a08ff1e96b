"""A run's folder under kills, full disks and several processes: no row is lost, and none is there twice."""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest

from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.results.row_file import RowFile, part_path
from dera_jax.results.rows import encode_rows, row_key
from tests.support.processes import ROOT
from tests.support.row_folders import folder, row


def python(script, *words, **more):
    words = [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_a_killed_run_leaves_whole_rows(tmp_path):
    script = """
        import sys
        from dera_jax.results.folder import RunFolder
        with RunFolder(sys.argv[1], {}, {"command": []}) as run:
            for i in range(len(run.rows), 10**6):
                row = {"prompt_id": i, "lambda": 1, "completion": "x" * 20000}
                run.append([{**row, "sample": s} for s in range(3)])
                print(i, flush=True)
    """
    for _ in range(3):
        process = python(script, tmp_path)
        done = [process.stdout.readline() for _ in range(5)]
        time.sleep(random.random() / 20)
        process.send_signal(signal.SIGKILL)
        done += process.communicate()[0].splitlines()
        rows = read_rows(tmp_path)
        assert len({row_key(r) for r in rows}) == len(rows)
        reported = {(int(i), sample, "1", 0) for i in done if i.strip() for sample in range(3)}
        assert reported <= {row_key(r) for r in rows}


def test_two_processes_do_not_share_a_folder(tmp_path):
    script = """
        import sys
        from dera_jax.results.folder import RunFolder
        with RunFolder(sys.argv[1], {}, {"command": []}) as run:
            print("in", flush=True)
            sys.stdin.read()
    """
    process = python(script, tmp_path, stdin=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=f"another run is writing to {tmp_path}"), folder(tmp_path, {}):
            pass
    finally:
        process.communicate("")
    with folder(tmp_path, {}), pytest.raises(ValueError, match="another run"), folder(tmp_path, {}):
        pass
    with folder(tmp_path, {}) as run:
        run.append([row()])


def test_a_full_disk_keeps_the_rows_so_far(tmp_path, monkeypatch):
    write = os.write
    room = 100

    def nearly_full(file, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, data[:room])
        room -= written
        return written

    with folder(tmp_path) as run:
        run.append([row(0)])
        before = (tmp_path / "rows.jsonl").read_bytes()
        monkeypatch.setattr(os, "write", nearly_full)
        with pytest.raises(ValueError) as error:
            run.append([row(1), row(2), row(3)])
        assert str(error.value) == (
            f"cannot write {tmp_path}/rows.jsonl: No space left on device; "
            "rows so far are kept; rerun the command to complete them"
        )
        assert (tmp_path / "rows.jsonl").read_bytes() == before
        assert run.rows == [row(0)] and run.keys == {(0, 0, "0.5", 0)}
        monkeypatch.undo()
        run.append([row(1)])
    assert read_rows(tmp_path) == [row(0), row(1)]


def test_a_limit_on_file_size_keeps_the_rows_so_far(tmp_path):
    """The operating system's own partial write, not a simulated one."""
    script = """
        import resource, sys
        from dera_jax.common.files import write_text
        from dera_jax.results.folder import RunFolder
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        rows = [{"prompt_id": i, "sample": 0, "lambda": 1, "completion": "x" * 700} for i in range(9)]
        with RunFolder(sys.argv[1], {}, {"command": []}) as run:
            run.append(rows[:3])
            for act in (run.append, run.replace_rows):
                try:
                    act(rows[3:] * 2)
                except ValueError as error:
                    print(error)
            run.append(rows[3:5])
    """
    out, err = python(script, tmp_path).communicate()
    assert err == ""
    assert [line.split(": ", 1)[1] for line in out.splitlines()] == [
        "File too large; rows so far are kept; rerun the command to complete them",
        "File too large",
    ]
    assert [r["prompt_id"] for r in read_rows(tmp_path)] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json", "rows.jsonl"]


def write_part(path, process, rows, torn=b""):
    with closing(RowFile(part_path(path, process), alone=True)) as part:
        part.append(encode_rows(rows))
    with part_path(path, process).open("ab") as file:
        file.write(torn)


def test_rows_of_single_processes_are_read_and_taken_in(tmp_path):
    with folder(tmp_path) as run:
        run.append([row(0)])
    write_part(tmp_path, 10, [row(4), row(5)], torn=b'{"prompt_id": 6, "samp')
    # Merged once already, by a run that was killed before it took the file away.
    write_part(tmp_path, 2, [row(0, completion="other"), row(3)])
    write_part(tmp_path, 3, [])
    (tmp_path / "rows-old.jsonl").write_text("not ours")
    expected = [row(0), row(3), row(4), row(5)]
    assert read_rows(tmp_path) == expected and read_rows(tmp_path / "rows.jsonl") == [row(0)]
    with folder(tmp_path, command=["sweep", "again"]) as run:
        assert run.rows == expected and len(run.keys) == 4
        run.append([row(7)])
    assert read_rows(tmp_path / "rows.jsonl") == [*expected, row(7)]
    names = [".lock", "manifest.json", "rows-old.jsonl", "rows.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [c["command"] for c in read_manifest(tmp_path)["commands"]] == [["sweep"], ["sweep", "again"]]


def test_a_file_that_a_process_still_writes_is_left_to_it(tmp_path):
    with folder(tmp_path) as run:
        run.append([row(0)])
    write_part(tmp_path, 1, [row(1)])
    path = part_path(tmp_path, 1)
    with closing(RowFile(path, alone=True)) as part:
        with (
            pytest.raises(ValueError, match=rf"^another run is writing to {path}( \(process \d+\))?$"),
            folder(tmp_path),
        ):
            pass
        part.append(encode_rows([row(2)]))
    with folder(tmp_path) as run:
        assert run.rows == [row(0), row(1), row(2)] and not path.exists()


def test_a_merge_that_fails_keeps_the_files(tmp_path, monkeypatch):
    with folder(tmp_path) as run:
        run.append([row(0)])
    write_part(tmp_path, 1, [row(1)])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in tmp_path.glob("rows*")}
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="No space left on device"), folder(tmp_path):
        pass
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("rows*")} == before
    part_path(tmp_path, 1).write_text('{"prompt_id"\n{}\n')
    with pytest.raises(ValueError, match=r"rows-1\.jsonl:1: broken row"), folder(tmp_path):
        pass
