"""Fixtures of the policies' tests."""

import shutil
from pathlib import Path

import pytest

from dera_jax.policies import untrusted, untrusted_worker


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    """A copy of a whole model, to be broken."""
    (tmp_path / "model").mkdir()
    for file in toy.iterdir():
        shutil.copyfile(file, tmp_path / "model" / file.name)
    return tmp_path / "model"


@pytest.fixture
def hurried(tmp_path_factory, monkeypatch):
    """Programs and patterns of models run with a fifth of their time."""
    there = Path(untrusted_worker.__file__).read_text()
    hurried = there.replace("SECONDS = 5.0", "SECONDS = 1.0").replace("EACH = 0.1", "EACH = 0.02")
    assert hurried.count("SECONDS = 1.0") == hurried.count("EACH = 0.02") == 1
    worker = tmp_path_factory.mktemp("hurried") / "worker.py"
    worker.write_text(hurried)
    monkeypatch.setattr(untrusted_worker, "__file__", str(worker))
    untrusted._WORKER.stop()
    yield
    untrusted._WORKER.stop()
