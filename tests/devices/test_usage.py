"""What a run tells of its slots and its memory, against a replay of its lengths and another measurement.

Runs as `python -m tests.devices.test_usage FOLDER` a sweep of few prompts and one of many, and tells their peaks.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dera_jax import load_policies, models, sweep
from dera_jax.data.encoding import EncodedPrompt, encode_prompts
from dera_jax.data.prompts import Prompt, as_prompts
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.decoding.room import CHUNK
from dera_jax.devices import usage
from dera_jax.devices.usage import Usage
from dera_jax.results.manifests import read_manifest
from tests.support.processes import ROOT

FEW, MANY = 64, 512
ALLOWED = 48
"""MiB that 448 more prompts may add: their rows, as the folder holds them, and what the allocator keeps."""


def replay(lengths, rows):
    """Returns the slot-steps of completions of such lengths that come to `rows` slots in this order."""
    waiting, left, steps = list(lengths), np.zeros(rows, int), 0
    while True:
        for slot in np.flatnonzero(left <= 0)[: len(waiting)]:
            left[slot] = waiting.pop(0)
        if not (left > 0).any():
            return steps
        left -= CHUNK
        steps += rows * CHUNK


def test_slot_steps_are_those_of_a_replay_of_the_lengths(pair):
    """Completions that end with a full stop; prompts of two lengths, which share a batch."""
    numbers, rows = np.random.default_rng(0), 3
    cells = []
    for number in range(12):
        ids = tuple(numbers.integers(3, 500, size=(6, 20)[number % 3 == 0]).tolist())
        prompt = EncodedPrompt(Prompt(number, "words"), (ids, ids))
        cells += [Request(prompt, sample, (0.5,)) for sample in range(2)]
    told, lengths = Usage(), {}
    for completion in complete(pair, cells, DecodeConfig(max_new_tokens=48, stop=(".",)), rows, usage=told):
        lengths[_key(completion.request)] = len(completion.tokens)
    assert len(set(lengths.values())) > 4
    # Short prompts first, in one batch with the others.
    in_order = sorted(cells, key=lambda cell: cell.prompt.buckets)
    assert len({cell.prompt.buckets for cell in cells}) == 2
    assert told.tokens == sum(lengths.values())
    assert told.slot_steps == replay([lengths[_key(cell)] for cell in in_order], rows)
    assert told.share == told.tokens / told.slot_steps


def _key(cell):
    return cell.prompt.id, cell.sample


def test_nothing_decoded_is_nothing_used():
    assert Usage().share == 0.0


def test_a_queue_that_does_not_end_keeps_slots_as_busy_as_chunks_allow():
    """The ceiling m / (m + c/2) that utilization is held against, where the last rows do not weigh."""
    lengths = np.random.default_rng(0).geometric(1 / 60, size=20_000)
    mean = lengths.mean()
    assert lengths.sum() / replay(lengths, 8) == pytest.approx(mean / (mean + CHUNK / 2), rel=0.01)


def test_peak_memory_of_a_device_is_the_largest(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    def peak(*stats):
        monkeypatch.setattr(jax, "local_devices", lambda: list(map(Device, stats)))
        return usage.peak_device_bytes()

    assert peak({"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 7}) == 7
    assert peak(None, {"bytes_in_use": 3}) is None
    assert usage.resources(Usage(10, 7)).keys() == {"slot_utilization", "peak_host_bytes"}
    peak({"peak_bytes_in_use": 5})
    assert usage.resources(Usage(3, 2)) | {"peak_host_bytes": 0} == {
        "slot_utilization": 0.6667, "peak_host_bytes": 0, "peak_device_bytes": 5,
    }  # fmt: skip


@pytest.mark.skipif(not usage.STATUS.is_file(), reason="only Linux tells how much a process holds now")
def test_peak_memory_of_the_process_is_its_own(tmp_path, monkeypatch):
    """A process starts with the peak of the one that started it, as `getrusage` tells it."""
    _, pages, *_ = map(int, Path("/proc/self/statm").read_text().split())
    peak, inherited = usage.peak_host_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert pages * resource.getpagesize() <= peak <= inherited + 2**20
    # Without Linux' own figure that of `getrusage` serves.
    monkeypatch.setattr(usage, "STATUS", tmp_path / "none")
    assert usage.peak_host_bytes() >= inherited


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_prompts(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "tests.devices.test_usage", str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    few, many, caches = json.loads(told.stdout)
    print(
        f"{few / 2**20:.1f} MiB with {FEW} prompts, {many / 2**20:.1f} with {MANY}; all caches {caches / 2**20:.0f}"
    )
    # Kept caches of all prompts would be seen.
    assert caches > 4 * ALLOWED * 2**20
    assert many - few < ALLOWED * 2**20


def main(run):
    """Prints the peaks of two sweeps, the second one adding prompts, and the bytes of all prompts' caches."""
    policies = load_policies()
    prompts = as_prompts([f"{number}: " + "once upon a time " * 14 for number in range(MANY)])
    peaks = []
    for count in (FEW, MANY):
        for _ in sweep(policies, prompts[:count], [0.5], out=run, rows=8, max_new_tokens=16):
            pass
        peaks.append(read_manifest(run)["resources"]["peak_host_bytes"])
    ((bucket, _),) = {prompt.buckets for prompt in encode_prompts(policies, prompts, 16)}
    caches = 2 * models.cache_bytes(policies[0].config, 1, bucket, 0)
    print(json.dumps([*peaks, caches * (MANY - FEW)]))


if __name__ == "__main__":
    main(sys.argv[1])
