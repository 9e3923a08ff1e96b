"""Two processes that are asked to end, or one of which is killed: neither goes on alone, and neither aborts."""

import json
import os
import signal
import time

import pytest

from dera_jax.commands.process import endings
from dera_jax.devices.lost import LINE
from dera_jax.policies.policy import TOY
from tests.support.processes import launch


@pytest.fixture
def words(tmp_path):
    data = tmp_path / "data.jsonl"
    records = [{"prompt": f"the cat {i}", "completion": f" sat on mat {i * 7 % 13}"} for i in range(40)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = [f"--model={TOY / 'reference'}", f"--data={data}", f"--out={tmp_path / 'out'}", "--mesh=data:2"]
    return ["train.sft", *given, "--max-steps=100000", "--batch-size=8", "--max-length=16"]


@pytest.fixture
def training(words, tmp_path):
    """Two processes that have taken three steps."""
    started, metrics = launch(words, 1, tmp_path), tmp_path / "out" / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
            assert all(each.poll() is None for each in started), (tmp_path / "err.0").read_text()
            time.sleep(0.05)
        yield started
    finally:
        for each in started:
            each.kill()
            each.wait()


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_after_one_step(training, tmp_path):
    os.kill(training[1].pid, signal.SIGTERM)
    assert [each.wait(timeout=120) for each in training] == [endings.TERMINATED] * 2
    (saved,) = (tmp_path / "out" / "checkpoints").iterdir()
    lines = (tmp_path / "out" / "metrics.jsonl").read_bytes().count(b"\n")
    for number in (0, 1):
        said = (tmp_path / f"err.{number}").read_text().splitlines()[-1]
        assert said == f"{tmp_path / 'out'}: saved after step {lines}; the same command goes on from there"
    assert saved.name == str(lines)


@pytest.mark.slow
def test_the_death_of_one_ends_the_other_without_a_stack(training, tmp_path):
    os.kill(training[0].pid, signal.SIGKILL)
    assert training[1].wait(timeout=120) == 2
    said = (tmp_path / "err.1").read_text()
    last = said.splitlines()[-1]
    assert last == LINE.strip() or "a step with other processes failed" in last
    assert "stack trace" not in said and "Traceback" not in said
