"""Fixtures of the commands' tests: data to train on, and runs to compare."""

import json
from pathlib import Path

import pytest

from tests.support.rows import make_rows, write_run

OPENINGS = [
    "Once upon a time", "One day", "Lily and Ben", "Tom was", "The dog", "A bird", "Mia had", "It was"
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(stand_ins, tmp_path_factory) -> Path:
    lines = (stand_ins / "tinystories/tiny_stories_head.txt").read_text().split("\n")
    path = tmp_path_factory.mktemp("data") / "stories.txt"
    path.write_text("\n".join(line for line in lines if 80 < len(line) < 200)[:20_000])
    return path


@pytest.fixture(scope="module")
def openings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in OPENINGS))
    return path


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """Short answers are preferred; the prompts are those of stories."""
    rows = [
        {
            "prompt": f"{opening} {word}",
            "chosen": f" in the {place}.",
            "rejected": f" and then he {word} to play.",
        }
        for opening in OPENINGS
        for word in ("ran", "went", "had", "saw")
        for place in ("park", "house", "sun")
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "a", make_rows(1)), write_run(tmp_path / "b", make_rows(2))
