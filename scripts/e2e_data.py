"""The restaurants of E2E: meaning representations and sentences, and those that are held out."""

import csv
import random
from pathlib import Path

HELD_OUT = 200
"""Meaning representations that are decoded; training does not see them."""


def pooled(data: Path) -> dict[str, list[str]]:
    """Returns the sentences of each meaning representation of the development and the test set."""
    return read_references(data / "devset.csv") | read_references(data / "testset_w_refs.csv")


def read_references(path: Path) -> dict[str, list[str]]:
    """Returns the sentences that people wrote for each meaning representation, in the file's order."""
    found: dict[str, list[str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["mr"], []).append(" ".join(row["ref"].split()))
    return found


def split(references: dict[str, list[str]], seed: int) -> tuple[dict, dict]:
    """Returns what is trained on and what is held out, all sentences of a meaning on one side."""
    meanings = list(references)
    random.Random(seed).shuffle(meanings)
    held_out, rest = meanings[:HELD_OUT], meanings[HELD_OUT:]
    return {mr: references[mr] for mr in rest}, {mr: references[mr] for mr in held_out}
