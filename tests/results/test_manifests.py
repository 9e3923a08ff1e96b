"""Manifests: whose folder they say it is, and what they tell of the commands, versions and commit."""

import errno
import json
import os
import subprocess
import sys

import pytest

from dera_jax.common.files import write_text
from dera_jax.common.json_files import read_json, write_json
from dera_jax.common.provenance import _git, provenance
from dera_jax.results.folder import RunFolder
from dera_jax.results.manifests import read_manifest
from tests.support.row_folders import IDENTITY, folder, row


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
