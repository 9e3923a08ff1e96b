import errno
import gzip
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest

from dera_jax.common.files import write_text
from dera_jax.common.json_files import read_json, write_json
from dera_jax.common.provenance import _git, provenance
from dera_jax.results.asked import tell_missing
from dera_jax.results.folder import RunFolder
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.results.row_file import RowFile, part_path
from dera_jax.results.rows import encode_rows, row_key, sort_rows
from tests.support.processes import ROOT

IDENTITY = {"models": {"reference": "a", "aligned": "b"}, "sampling": {"temperature": 1.0, "top_k": None}}


def row(prompt_id=0, sample=0, lambda_=0.5, **more):
    return {"prompt_id": prompt_id, "sample": sample, "lambda": lambda_, **more}


def folder(path, identity=None, command=("sweep",)):
    made = {"command": list(command), "time": "2025-01-01T00:00:00+00:00", "device": "cpu"}
    return RunFolder(path, IDENTITY if identity is None else identity, made)


def python(script, *words, **more):
    words = [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_rows_come_back_as_they_were(tmp_path):
    rows = [
        row(0, 0, [0.5, 1.0], completion="λ \u2028 \x85 \n\r\t \0 \ud800 😀", logprob=-1.2345678901234567),
        row("zwölf", 3, [0.5, -1.0], rewards={"python:a:b": None}),
    ]
    with folder(tmp_path / "a" / "run") as run:
        assert run.rows == [] and run.keys == set()
        run.append(rows)
        assert run.rows == rows
        assert run.keys == {(0, 0, "0.5+1", 0), ("zwölf", 3, "0.5+-1", 0)}
    assert read_rows(tmp_path / "a" / "run") == read_rows(tmp_path / "a" / "run" / "rows.jsonl") == rows
    with folder(tmp_path / "a" / "run") as run:
        assert run.rows == rows and run.keys == set(map(row_key, rows))


@pytest.mark.parametrize(
    "ending, compress, tool", [("gz", gzip.compress, "gunzip"), ("xz", lzma.compress, "unxz")]
)
def test_compressed_rows_are_read_and_not_written_beside(tmp_path, ending, compress, tool):
    with folder(tmp_path) as run:
        run.append([row()])
    path, packed = tmp_path / "rows.jsonl", tmp_path / f"rows.jsonl.{ending}"
    packed.write_bytes(compress(path.read_bytes()))
    path.unlink()
    assert read_rows(tmp_path) == [row()]
    with pytest.raises(ValueError, match=rf"{tool} .*rows\.jsonl\.{ending}"), folder(tmp_path):
        pass
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"cannot read .*rows\.jsonl\.{ending}: \w+"):
        read_rows(tmp_path)


def test_what_is_missing_is_told(tmp_path):
    whole = [row(prompt_id=p, **{"lambda": s}) for p in range(3) for s in (0.0, 0.5)]
    assert tell_missing(tmp_path, whole) is None
    told = tell_missing(tmp_path, whole[:-1])
    assert told == "1 completion is missing, the first at λ = 0.5: prompt 2, sample 0"
    turns = [*whole, row(prompt_id=0, **{"lambda": 0.0}, turn=1)]  # that of λ = 0.5 did not fit
    assert tell_missing(tmp_path, turns) is None
    own = [row(prompt_id=p, **{"lambda": float(p)}) for p in range(4)]  # each prompt its own strength
    assert tell_missing(tmp_path, own) is None
    with folder(tmp_path) as run:
        run.append(whole)
    assert "has not ended: 6 completions" in tell_missing(tmp_path, whole)


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_torn_last_line_is_ignored_then_repaired(tmp_path, lost):
    rows = [row(i, completion="täglich ✓") for i in range(3)]
    with folder(tmp_path) as run:
        run.append(rows)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    kept = rows if lost == 1 else rows[:2]  # One byte less is the end of the line: the row is whole.
    assert read_rows(path) == kept
    with folder(tmp_path) as run:
        assert run.rows == kept
        run.append([row(9)])
    assert read_rows(path) == [*kept, row(9)]
    assert path.read_bytes().count(b"\n") == len(kept) + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting .* at column 2$"),
        ("", "Expecting value at column 1$"),
        ("[1]", "expected an object, found list"),
        ('{"prompt": "hello"}', "no 'prompt_id' in it"),
        ('{"prompt_id": 0, "sample": 0, "lambda": "x"}', "expected a finite number"),
        ('{"prompt_id": 0, "sample": 0, "lambda": 1, "logprob": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_broken_line_elsewhere_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n" + line + "\n" + json.dumps(row(1)) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: broken row: .*{message}"):
        read_rows(tmp_path)


def test_absent_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no run in .*: expected rows\.jsonl"):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere: No such file or directory"):
        read_rows(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"cannot read .*manifest\.json"):
        read_manifest(tmp_path)


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


def test_another_identity_is_refused_and_named(tmp_path):
    with folder(tmp_path) as run:
        run.append([row()])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = {"models": {"reference": "a", "aligned": "c" * 90}, "sampling": {"temperature": 0.7}, "seed": 1}
    with pytest.raises(ValueError) as error, folder(tmp_path, other):
        pass
    assert str(error.value) == (
        f'{tmp_path} holds another run: models.aligned is "b" there and "{"c" * 19}…{"c" * 18}" here, '
        "sampling.temperature is 1.0 there and 0.7 here, "
        "sampling.top_k is null there and absent here, 1 more; choose another --out"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # What JSON cannot tell apart is the same.
    with (
        folder(tmp_path / "new", {"mesh": (1, 2)}),
        pytest.raises(ValueError, match="another run is writing"),
    ):
        folder(tmp_path / "new", {"mesh": [1, 2]}).__enter__()
    with folder(tmp_path / "new", {"mesh": [1, 2]}):
        pass


def test_folders_that_are_no_run_are_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"not empty and holds no run \(thesis\.tex\): choose another --out"):
        folder(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    other = tmp_path / "checkpoint"
    other.mkdir()
    (other / "manifest.json").write_text('{"step": 3}')
    with pytest.raises(ValueError, match="not the manifest of a run"):
        folder(other).__enter__()
    assert [path.name for path in other.iterdir()] == ["manifest.json"]
    (other / "manifest.json").write_text('{"format": 7, "identity": {}}')
    with pytest.raises(ValueError, match="expected format 1, found 7"):
        folder(other).__enter__()
    with pytest.raises(ValueError, match=r"cannot write to .*thesis.tex: "):
        folder(tmp_path / "thesis.tex").__enter__()
    # A run killed before it wrote anything.
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".lock").touch()
    (killed / ".manifest.json.1234.tmp").write_text("{")
    with folder(killed) as run:
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


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with folder(tmp_path) as run:
        with pytest.raises(ValueError, match=r"row \(4, 0, '0\.5', 0\) holds a number that is not finite"):
            run.append([row(3), row(4, logprob=float("nan"))])
        assert run.rows == []
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_replaced_rows_are_the_ones_added_to(tmp_path):
    with folder(tmp_path) as run:
        run.append([row(0), row(1)])
        run.replace_rows([row(i, rewards={"new": 1.0}) for i in range(2)])
        run.append([row(2)])
        assert [r["prompt_id"] for r in run.rows] == [0, 1, 2]
    assert read_rows(tmp_path) == [row(0, rewards={"new": 1.0}), row(1, rewards={"new": 1.0}), row(2)]


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


def test_the_manifest_tells_what_was_run(tmp_path):
    with folder(tmp_path) as run:
        run.append([row()])
        run.append([row(1)])
        run.finish({"lambda": ["0.5"]}, {"speed": {"0.5": 10.0}})
    first = (tmp_path / "manifest.json").read_bytes()
    with folder(tmp_path, command=["sweep", "again"]) as run:
        run.finish({"lambda": ["0.5"]})
    assert (tmp_path / "manifest.json").read_bytes() == first, "a rerun that adds nothing changes nothing"
    later = RunFolder(tmp_path, IDENTITY, {"command": ["sweep", "more"], "time": "later", "device": "tpu"})
    with later as run:
        run.append([row(2)])
        run.finish({"lambda": ["0.5", "1"]})
    made = {"command": ["sweep"], "time": "2025-01-01T00:00:00+00:00"}
    assert read_manifest(tmp_path / "rows.jsonl") == {
        "format": 1,
        "identity": IDENTITY,
        "extent": {"lambda": ["0.5", "1"]},
        "provenance": {**made, "device": "cpu"},
        "commands": [made, {"command": ["sweep", "more"], "time": "later", "device": "tpu"}],
        "speed": {"0.5": 10.0},
    }


def test_rows_have_one_order(tmp_path):
    rows = [
        row(prompt_id, sample, lambda_, turn=turn)
        for prompt_id in (2, 10, "10", "a")
        for sample in (0, 1)
        for lambda_ in (-1, 0.5, 2, 10)
        for turn in (0, 1)
    ]
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    assert sort_rows(shuffled) == rows


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"λ": [1, None, "\ud800"]})
    assert read_json(path) == {"λ": [1, None, "\ud800"]}

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=rf"^cannot write {path}: No space left on device$"):
        write_text(path, "new")
    assert read_json(path)["λ"] == [1, None, "\ud800"]
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not JSON: .*column 2"):
        read_json(path)


def test_provenance_names_versions_and_commit(tmp_path):
    made = json.loads(json.dumps(provenance(["eval.sweep", "--seed=1"], device="cpu")))
    assert made["command"] == ["eval.sweep", "--seed=1"] and made["device"] == "cpu"
    assert made["versions"]["python"] == sys.version.split()[0]
    import numpy

    assert made["versions"]["numpy"] == numpy.__version__


def test_the_commit_is_that_of_the_package_only(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    assert _git(tmp_path.resolve()) is None
    git("init")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a").write_text("1")
    assert _git(tmp_path.resolve()) is None, "nothing is committed yet"
    git("add", ".")
    git("commit", "-m", "first")
    found = _git(tmp_path.resolve())
    assert len(found["commit"]) == 40 and found["dirty"] is False
    assert _git((tmp_path / "inside").resolve()) is None, "a package in somebody else's checkout"
    (tmp_path / "inside" / "a").write_text("2")
    assert _git(tmp_path.resolve()) == {**found, "dirty": True}
