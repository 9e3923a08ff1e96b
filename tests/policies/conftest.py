"""Fixtures of the policies' tests."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    """A copy of a whole model, to be broken."""
    (tmp_path / "model").mkdir()
    for file in toy.iterdir():
        shutil.copyfile(file, tmp_path / "model" / file.name)
    return tmp_path / "model"
