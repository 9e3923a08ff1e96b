"""A few minutes of the campaign; DERA_CAMPAIGN=full runs all of it, DERA_CAMPAIGN_SEED draws other cases."""

import os
import subprocess
import sys

import pytest

from tests.campaign import inputs
from tests.support.processes import ROOT

SIZES = {"inputs": ["--kills=0"], "kills": ["--inputs=0"]}


@pytest.mark.slow
@pytest.mark.parametrize("part", SIZES)
def test_nothing_is_lost_and_nothing_falls(part, capsys):
    """No traceback, no changed file, nothing lost to a kill: what each is, README.md beside this file tells."""
    seed = os.environ.get("DERA_CAMPAIGN_SEED", "0")
    sizes = SIZES[part]
    if os.environ.get("DERA_CAMPAIGN") == "full":
        sizes = ["--full", "--kills=0" if part == "inputs" else "--inputs=0"]
    words = [sys.executable, "-m", "tests.campaign", f"--seed={seed}", *sizes]
    # Files, not pipes: what a command leaves running would keep them open.
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    with capsys.disabled():
        print(
            "\n"
            + "\n".join(
                line for line in done.stdout.splitlines() if line.startswith("all") or "kills in" in line
            )
        )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


def test_a_sample_takes_all_kinds_and_repeats():
    """The same seed draws the same cases, another one others; each kind has its share; names are cases."""
    cases = {
        (kind, command): [inputs.Case(kind, command, f"bytes flip {n}") for n in range(20)]
        for kind in ("rows", "config", "words")
        for command in ("a", "b")
    }
    chosen = inputs.sample(cases, 12, seed=1)
    assert chosen == inputs.sample(cases, 12, seed=1) != inputs.sample(cases, 12, seed=2)
    assert len(set(chosen)) == 12
    assert all(sum(case.kind == kind for case in chosen) == 4 for kind in ("rows", "config", "words"))
    assert [inputs.parse(case.name) for case in chosen] == chosen
