"""Several processes in one run: who takes what, how they start, and that the rows are those of one."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from dera_jax import read_rows
from dera_jax.commands import dpo, sft, sweep
from dera_jax.devices import processes
from dera_jax.policies.policy import TOY
from dera_jax.results.rows import parse_rows, sort_rows
from tests.support.processes import ROOT, await_all, environment, free_port, launch

SUMS = (
    "logprob", "reference_logprob", "aligned_logprob", "sampling_logprob", "kl_to_reference", "log_normalizer"
)  # fmt: skip
SWEEP = ["--num-prompts=4", "--max-new-tokens=16", "--rows=4"]
"""Of the toy pair."""


# Who takes what


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_all_of_it_and_nearly_equal(seed):
    numbers = np.random.default_rng(seed)
    count, lengths = int(numbers.integers(1, 9)), numbers.integers(1, 12, size=numbers.integers(0, 40))
    items = [(prompt, cell) for prompt, length in enumerate(lengths) for cell in range(length)]
    shares = [processes.share(items, lambda item: item[0], number, count) for number in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) <= max(1.25 * len(items) / count, -(-len(items) // count))
    takers = [sum(any(p == prompt for p, _ in share) for share in shares) for prompt in range(len(lengths))]
    # Where prompts are split, as few of them as can be.
    assert sum(takers) <= len(lengths) + (count - 1)


def test_prompts_stay_together_while_there_are_enough():
    items = [(prompt, cell) for prompt in range(24) for cell in range(11)]
    shares = [processes.share(items, lambda item: item[0], number, 8) for number in range(8)]
    assert [len({prompt for prompt, _ in share}) for share in shares] == [3] * 8
    alone = [processes.share(items[:11], lambda item: item[0], number, 8) for number in range(8)]
    assert sorted(map(len, alone)) == [1] * 5 + [2] * 3


def test_a_process_alone_is_its_own_company():
    assert processes.exchange({"a": 1}) == [{"a": 1}] and processes.leads() and not processes.several()
    assert processes.together(lambda: 3) == 3
    with pytest.raises(KeyError):
        processes.together(lambda: {}["gone"])


# How they start


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_coordinator_that_cannot_be_reached_is_named(number, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    words = [
        f"--coordinator={address}",
        "--num-processes=2",
        f"--process-id={number}",
        "--coordinator-timeout=1.5",
    ]
    started, folder = time.monotonic(), tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, "-m", "eval.sweep", f"--out={folder}", *words],
        cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    expected = f"error: the coordinator {address}, 2 processes: not reached by all of them within 1.5 s"
    assert (ended.returncode, ended.stdout) == (2, "") and "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    # The first process also hears its own service close.
    assert lines[0] == expected and (number == 0 or len(lines) == 1)
    assert time.monotonic() - started < 40 and not folder.exists()


def test_a_timeout_that_is_none(tmp_path, capsys):
    assert sweep.main(["--coordinator-timeout=-1", f"--out={tmp_path / 'run'}"]) == 2
    assert "--coordinator-timeout: expected a number from 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script, words, tool",
    [("tpu_pod", ["slice", "zone", "/a b/run"], "gcloud"), ("slurm", ["--out=/a b/run"], "srun")],
)
def test_scripts_start_the_command(script, words, tool, tmp_path):
    """With the cluster's tool replaced by one that tells what it was asked for."""
    (tmp_path / tool).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / tool).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given = [*words, "--lambda=0:2:0.2", "--stop=\\n", "--mesh=data:2,model:4"]
    command = ["bash", ROOT / "scripts" / f"{script}.sh", *given]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    line = told.split("--command=")[-1] if tool == "gcloud" else shlex.join(told.splitlines())
    found = shlex.split(line)
    assert found[found.index("python") :][:3] == ["python", "-m", "eval.sweep"]
    args = sweep.make_parser().parse_args(found[found.index("eval.sweep") + 1 :])
    assert (args.coordinator, str(args.out), args.stop) == ("auto", "/a b/run", ["\\n"])
    assert (args.lambda_, args.mesh) == ("0:2:0.2", "data:2,model:4")


# That the rows are those of one


def sweep_by(count, out, folder, *words, devices=2):
    command = ["eval.sweep", *SWEEP, f"--out={out}", *words]
    return await_all(launch(command, devices, folder, count), folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The rows of one process with one device."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert sweep.main([*SWEEP, "--lambda=0,0.5,1,1.5", f"--out={out}"]) == 0
    return sort_rows(read_rows(out))


def assert_agree(found, expected, name):
    """At most 10⁻⁴ changed words per token, and 10⁻⁵ nats per token where none has."""
    changed, tokens, far = 0, 0, 0.0
    for ours, other in zip(found, expected, strict=True):
        same = {field: ours[field] for field in ("prompt_id", "sample", "lambda", "seed", "prompt_tokens")}
        assert same == {field: other[field] for field in same}
        tokens += len(other["tokens"])
        if ours["tokens"] != other["tokens"]:
            changed += 1
            continue
        assert ours["rewards"] == other["rewards"] and ours["completion"] == other["completion"]
        far = max(far, *(abs(ours[f] - other[f]) / len(other["tokens"]) for f in SUMS))
    print(f"\n{name}: {changed} changed words in {tokens} tokens, {far:.1e} nats per token apart")
    assert changed <= 1e-4 * tokens and far <= 1e-5


@pytest.mark.slow
def test_meshes_over_two_processes_give_the_rows_of_one_device(one, tmp_path):
    out = tmp_path / "run"
    grown = [("data:4", [0, 1]), ("data:2,model:2", [0.5]), ("model:4", [1.5])]
    there = []
    for mesh, lambdas in grown:
        there += lambdas
        told = sweep_by(2, out, tmp_path, f"--mesh={mesh}", "--lambda=" + ",".join(map(str, there)))
        rows = read_rows(out)
        assert len(rows) == 4 * len(there)
        keys = {(r["prompt_id"], r["lambda"]) for r in rows}
        assert len(keys) == len(rows)
        new = [r for r in rows if r["lambda"] in lambdas]
        assert_agree(sort_rows(new), [r for r in one if r["lambda"] in lambdas], mesh)
        extent = json.loads((out / "manifest.json").read_text())["extent"]
        assert extent["mesh"] == {"data:4": "data:4,model:1", "model:4": "data:1,model:4"}.get(mesh, mesh)
        assert sorted(path.name for path in out.iterdir()) == [
            ".lock", "manifest.json", "rows.jsonl", "summary.csv", "sweep.png"
        ]  # fmt: skip
        assert "rows.jsonl (" in told[0][0] and "completion" in told[0][1]
        # The other is quiet: what there is, the library for processors says, lines of several threads mixed.
        assert not any(word in told[1][0] for word in ("λ", "rows", "compl", "device")) and told[1][1] == ""
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["commands"]) == 3 and manifest["provenance"]["processes"] == 2
    assert manifest["extent"]["lambda"] == ["0", "0.5", "1", "1.5"]


@pytest.mark.slow
def test_a_killed_process_leaves_rows_that_a_rerun_completes(tmp_path):
    words = [*SWEEP, "--num-samples=40", "--lambda=0,1"]
    out, alone = tmp_path / "run", tmp_path / "alone"
    started = launch(["eval.sweep", *words, f"--out={out}", "--mesh=data:2"], 1, tmp_path)
    part = out / "rows-1.jsonl"
    try:
        while not (part.exists() and part.stat().st_size):
            assert all(each.poll() is None for each in started), (tmp_path / "err.0").read_text()
            time.sleep(0.02)
        os.kill(started[1].pid, signal.SIGKILL)
        started[1].wait()
        time.sleep(0.3)
        # The other goes on, until the coordinator misses what is gone.
        assert started[0].poll() is None
        assert sweep.main([*words, f"--out={out}"]) == 2, "while one is at work"
    finally:
        for each in started:
            each.kill()
            each.wait()
    for path in out.glob("rows*.jsonl"):
        _, length = parse_rows(path.read_bytes(), path)
        assert length == path.stat().st_size or path.read_bytes()[length:].count(b"\n") == 0
    kept = read_rows(out)
    assert 0 < len(kept) < 320
    with part.open("ab") as torn:
        torn.write(b'{"prompt_id": 1, "sam')
    assert sweep.main([*words, f"--out={out}"]) == 0
    assert sweep.main([*words, f"--out={alone}"]) == 0
    assert (
        not list(out.glob("rows-*")) and len(json.loads((out / "manifest.json").read_text())["commands"]) == 2
    )
    found, expected = sort_rows(read_rows(out)), sort_rows(read_rows(alone))
    assert [r for r in found if r in kept] == sort_rows(kept)
    assert_agree(found, expected, "killed and rerun")


@pytest.mark.slow
@pytest.mark.parametrize("mesh, command", [("data:2,model:2", sft), ("model:4", dpo)])
def test_two_processes_train_what_one_does(mesh, command, tmp_path):
    data = tmp_path / "data.jsonl"
    answer, name = ("chosen", "dpo") if command is dpo else ("completion", "sft")
    records = [
        {"prompt": f"the cat {i}", answer: f" sat on mat {i * 7 % 13}", "rejected": f" ran {i} miles"}
        for i in range(40)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = [f"--model={TOY / 'reference'}", f"--data={data}", "--max-steps=4", "--batch-size=8"]
    words += ["--eval-share=0.2", "--eval-steps=2", "--save-steps=2"]
    await_all(
        launch([f"train.{name}", *words, f"--mesh={mesh}", f"--out={tmp_path / 'two'}"], 2, tmp_path),
        tmp_path,
    )
    assert command.main([*words, f"--out={tmp_path / 'one'}"]) == 0
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert [line["step"] for line in two] == [0, 1, 2, 3]
    for ours, other in zip(two, one, strict=True):
        assert ours == pytest.approx(other, rel=1e-4, abs=1e-5)
    ours, other = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, value in other.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-4, err_msg=name)
