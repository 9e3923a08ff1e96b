"""Training commands that are stopped, killed or cannot write: the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import sft
from dera_jax.commands.process import endings
from dera_jax.policies.policy import TOY
from dera_jax.training import runs
from dera_jax.training.log import read_metrics
from tests.support.json_files import read
from tests.support.processes import ROOT, environment, run, wait_for_lines


@pytest.fixture
def words(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a cat", "completion": " sat"}\n' * 4)
    given = [f"--model={TOY / 'reference'}", f"--data={data}", f"--out={tmp_path / 'out'}"]
    return [*given, "--batch-size=2", "--max-length=16", "--max-steps=1"]


def test_sigterm_ends_a_training_with_143_and_the_rerun_completes_it(words, tmp_path, monkeypatch, capsys):
    """In its last step, after which there is nothing to train."""
    encode = runs.fit

    def asked(method, *args):
        batches = method.batches

        def terminated(state, step):
            os.kill(os.getpid(), signal.SIGTERM)
            return batches(state, step)

        object.__setattr__(method, "batches", terminated)
        return encode(method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", asked)
        assert sft.main(words) == endings.TERMINATED == 128 + signal.SIGTERM
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{tmp_path / 'out'}: saved after step 1; the same command goes on from there"
    assert sft.main(words) == 0
    assert load_policy(str(tmp_path / "out")) and read(tmp_path / "out" / "manifest.json")["finished"]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_bar_that_cannot_write_ends_no_run(words, tmp_path):
    with open("/dev/full", "w") as full:
        call = [sys.executable, "-m", "train.sft", *words]
        ended = subprocess.run(call, cwd=ROOT, env=environment(1), stdout=subprocess.PIPE, stderr=full)
    assert ended.returncode == 0 and b"1 step; model" in ended.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_happened(toy, texts, tmp_path):
    """SIGTERM once, SIGKILL twice: bit-identical parameters, the same lines.

    Each start of a process takes seconds; kills at every operation are those of test_crashes.
    """
    arguments = [
        f"--model={toy}", f"--data={texts}", "--max-length=64", "--max-steps=12", "--batch-size=8",
        "--learning-rate=0.002", "--save-steps=1", "--eval-steps=3", "--eval-share=0.1",
    ]  # fmt: skip
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    # What nothing stops needs no process of its own.
    assert sft.main([*arguments, f"--out={straight}"]) == 0
    random = np.random.default_rng(0)
    for attempt in range(3):
        process = run("train.sft", *arguments, f"--out={stopped}")
        wait_for_lines(stopped / "metrics.jsonl", 3 * (attempt + 1), process)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL if attempt else signal.SIGTERM)
        said = process.communicate()
        assert process.returncode in ((-signal.SIGKILL, 0) if attempt else (endings.TERMINATED,)), said
    assert sft.main([*arguments, f"--out={stopped}"]) == 0
    for name in ("metrics.jsonl", "samples.jsonl", "model.safetensors", "best/model.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes(), name
    assert [line["step"] for line in read_metrics(stopped)] == list(range(12))
