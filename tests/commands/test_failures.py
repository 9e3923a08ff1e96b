"""What ends a command too early, said in one line: models, a user's code, devices, disks, interruptions."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from safetensors.numpy import load_file, save_file

from dera_jax import read_rows
from dera_jax.commands import sweep
from dera_jax.commands.process import endings
from dera_jax.common import spelling
from dera_jax.decoding import branches
from dera_jax.results.rows import sort_rows
from tests.support.processes import ROOT

# Models that cannot serve


@pytest.fixture
def copied(toy, tmp_path):
    """A copy of a model, to be spoilt."""
    return Path(shutil.copytree(toy, tmp_path / "copy"))


def spoil_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_other_vocabularies_are_refused(refused, base, copied):
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    *_, one, other = vocab
    vocab[one], vocab[other] = vocab[other], vocab[one]
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(sweep.main, *base, f"--aligned={copied}")
    assert "the models have different vocabularies" in line and str(copied) in line


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without(name):
    return lambda folder: (folder / name).unlink()


def weights(change):
    return lambda folder: spoil_weights(folder, change)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without("model.safetensors"), "expected model.safetensors, found none"),
        (lambda folder: os.truncate(folder / "model.safetensors", 400_000), "model.safetensors: not a whole"),
        (write("model.safetensors", b""), "model.safetensors: not a whole"),
        (write("config.json", b'{"model_type": "bert"}'), "'bert' is not supported"),
        (write("config.json", b"{"), "config.json: not JSON"),
        (without("tokenizer.json"), "expected tokenizer files"),
        (weights(lambda t: t.pop("model.norm.weight")), "model.norm.weight is missing"),
        (weights(lambda t: t["model.norm.weight"].fill(np.nan)), "model.norm.weight holds NaN or infinite"),
    ],
    ids=["missing", "truncated", "empty", "bert", "config", "tokenizer", "tensor", "nan"],
)
def test_broken_models_are_named(refused, base, copied, spoil, message):
    spoil(copied)
    line = refused(sweep.main, *base, f"--aligned={copied}")
    assert message in line and str(copied) in line


def test_logits_that_overflow_are_named(fails, base, copied, tmp_path):
    spoil_weights(copied, lambda t: t["model.norm.weight"].fill(3e38))
    line = fails(sweep.main, *base, f"--aligned={copied}", f"--out={tmp_path / 'run'}")
    assert f"{copied}: logits are not finite at token 1 of the completion of prompt 0" in line
    assert read_rows(tmp_path / "run") == []


# A user's own code


def test_a_rule_of_ones_own(call, base, finished, mine):
    code, _, _ = call(sweep.main, *base, f"--rule={mine}:mixture", "--out=run")
    assert code == 0
    expected = {(row["prompt_id"], row["lambda"]): row["tokens"] for row in read_rows(finished)}
    rows = read_rows("run")
    assert {(row["prompt_id"], row["lambda"]): row["tokens"] for row in rows} == expected
    assert all(row["log_normalizer"] is None and row["rule"] == f"{mine}:mixture" for row in rows)


def test_a_rule_that_makes_nan_is_named(fails, base, mine):
    line = fails(sweep.main, *base, f"--rule={mine}:nan", "--out=run")
    assert f"rule {mine}:nan: logits are not finite at token 1 of the completion of prompt 0" in line


def test_a_reward_of_the_wrong_count_is_named_and_rows_are_kept(fails, call, base, finished, mine):
    line = fails(sweep.main, *base, f"--reward=python:{mine}:few", "--out=run")
    assert f"reward python:{mine}:few: expected 9 numbers, found 1" in line
    code, _, _ = call(sweep.main, *base, f"--reward=python:{mine}:words", "--out=run")
    assert code == 0
    rows, expected = sort_rows(read_rows("run")), sort_rows(read_rows(finished))
    for row, other in zip(rows, expected, strict=True):
        assert row["rewards"] == {f"python:{mine}:words": float(len(row["completion"].split()))}
        assert row | {"rewards": {}, "beta": None} == other | {"rewards": {}, "beta": None}


# Devices


def test_an_accelerator_that_is_not_used_is_told(refused, base, monkeypatch):
    import jax

    if jax.devices()[0].platform != "cpu":
        pytest.skip("runs on an accelerator")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(
        "dera_jax.commands.options.cli.glob.glob", lambda pattern: [pattern.partition("[")[0] + "0"]
    )
    assert "/dev/nvidia0 is present but JAX runs on the CPU" in refused(sweep.main, *base)


# Interruptions


def test_a_full_disk_keeps_what_was_written(fails, call, base, finished, tmp_path, monkeypatch):
    write, written = os.write, []

    def almost_full(file, data):
        if b'"prompt_id"' not in bytes(data):
            return write(file, data)
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(file, bytes(data)[: len(data) // 2]))
        return written[0]

    monkeypatch.setattr(os, "write", almost_full)
    line = fails(sweep.main, *base, f"--out={tmp_path / 'run'}", "--beta=0.1", "--reward=length:24:30")
    assert "rows.jsonl: No space left on device; rows so far are kept" in line
    assert read_rows(tmp_path / "run") == [] and written
    monkeypatch.setattr(os, "write", write)
    code, _, _ = call(sweep.main, *base, f"--out={tmp_path / 'run'}", "--beta=0.1", "--reward=length:24:30")
    assert code == 0
    assert sort_rows(read_rows(tmp_path / "run")) == sort_rows(read_rows(finished))


def test_a_branch_that_finds_no_memory_loses_no_completion(fails, call, base, tmp_path, monkeypatch):
    """A row is copied where strengths part and slots are idle; the rerun makes what is missing."""
    words = [*base, "--lambda=0:2:0.2", "--rows=4", "--max-new-tokens=32"]
    whole, run = f"--out={tmp_path / 'whole'}", f"--out={tmp_path / 'run'}"
    assert call(sweep.main, *words, whole)[0] == 0
    copies, copy_rows = [], branches.copy_rows

    def full(*args, **settings):
        copies.append(1)
        if len(copies) == 2:
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return copy_rows(*args, **settings)

    monkeypatch.setattr(branches, "copy_rows", full)
    assert "--rows" in fails(sweep.main, *words, run)
    kept, expected = read_rows(tmp_path / "run"), read_rows(tmp_path / "whole")
    assert 0 < len(kept) < len(expected)
    monkeypatch.setattr(branches, "copy_rows", copy_rows)
    assert call(sweep.main, *words, run)[0] == 0
    assert sort_rows(read_rows(tmp_path / "run")) == sort_rows(expected)


@pytest.fixture
def long(models, prompts):
    return [*models, prompts, "--max-new-tokens=64", "--rows=8", "--lambda=0,0.5,1,1.5", "--num-samples=12",
            "--reward=length:10:64,keywords:a|the"]  # fmt: skip


SLOWLY = """
import os, sys, time
from dera_jax.commands.door import begin
begin()
from dera_jax.commands import sweep
write = os.write
def slow(file, data):
    done = write(file, data)
    if b'"prompt_id"' in bytes(data):
        time.sleep(10)
    return done
os.write = slow
sys.exit(sweep.main())
"""
"""A sweep that rests after it has written rows, so that it is met in its midst on any machine."""


def start(words):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *words], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def count(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_and_interrupted_sweeps_complete_to_the_same_rows(call, long, tmp_path):
    moments = random.Random(0)
    code, _, _ = call(sweep.main, *long, f"--out={tmp_path / 'whole'}")
    assert code == 0
    expected = sort_rows(read_rows(tmp_path / "whole"))
    run = tmp_path / "run"
    rows = run / "rows.jsonl"
    # The first while it compiles, the others after rows were written.
    for number, kind in enumerate([signal.SIGINT, signal.SIGKILL, signal.SIGKILL, signal.SIGINT]):
        before = count(rows)
        with start([*long, f"--out={run}"]) as process:
            if number == 0:
                wait_for((run / "manifest.json").exists, process)
            else:
                wait_for(lambda before=before: count(rows) > before, process)
            time.sleep(moments.uniform(0.0, 0.1))
            process.send_signal(kind)
            error = process.stderr.read()
        found = read_rows(run) if rows.exists() else []
        assert before <= len(found) < len(expected)
        if kind == signal.SIGINT:
            assert process.returncode == 130 and "Traceback" not in error
            assert error.splitlines()[-1] == (
                f"interrupted: finished completions are in {run}; rerun to resume"
            )
    code, _, _ = call(sweep.main, *long, f"--out={run}")
    assert code == 0
    # Equal in every field and every bit.
    assert sort_rows(read_rows(run)) == expected
    assert (run / "summary.csv").read_bytes() == (tmp_path / "whole" / "summary.csv").read_bytes()


@pytest.mark.parametrize(
    "error, line",
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9"),
            "error: out of memory, fewer --rows",
        ),
        (MemoryError(), "error: out of memory"),
        (OSError(errno.EACCES, "Permission denied", "x"), "error: x: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "error: xxx"),
        (RecursionError("maximum"), "error: a file, a template or a code is nested too deeply"),
        (ValueError("\x1b[2J" + "y" * 5000), "error: \\x1b[2Jyyy"),
        (ValueError("one\n  two"), "error: one two"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(call, error, line):
    def fail(argv):
        raise error

    code, out, err = call(endings.command(fail))
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert out == "" and err.startswith(line) and err.count("\n") == 1 and len(err) < 650


def test_a_bug_shows_where_it_is(call, monkeypatch):
    def fail(argv):
        spelling.spelled("gone")

    code, out, err = call(endings.command(fail))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.fullmatch(
        r"error: unexpected KeyError: .* at dera_jax/common/spelling.py:\d+ \(DERA_DEBUG=1 shows the traceback\)\n",
        err,
    )
    monkeypatch.setenv("DERA_DEBUG", "1")
    code, _, err = call(endings.command(fail))
    assert code == 1 and "Traceback (most recent call last)" in err


def test_a_reader_that_has_seen_enough_and_a_full_disk_under_the_output(finished):
    words = [sys.executable, "-m", "eval.plot", str(finished), "--table=markdown"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe, options = os.pipe(), {"cwd": ROOT, "env": environment, "text": True, "stderr": subprocess.PIPE}
    os.close(pipe[0])
    done = subprocess.run(words, stdout=pipe[1], **options)
    os.close(pipe[1])
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, **options)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")
