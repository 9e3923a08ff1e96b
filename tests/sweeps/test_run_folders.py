"""What a sweep leaves in its folder, what may be added there, and what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dera_jax import read_rows
from dera_jax.commands import sweep
from dera_jax.results.rows import sort_rows
from tests.support.command_runs import PNG, TEXTS


def test_a_sweep_writes_what_it_promises(finished, base, toy, aligned):
    assert {path.name for path in finished.iterdir()} == {
        ".lock", "rows.jsonl", "manifest.json", "summary.csv", "sweep.png"
    }  # fmt: skip
    assert (finished / "sweep.png").read_bytes().startswith(PNG)
    rows = read_rows(finished)
    assert len(rows) == 9 and all(row["beta"] == 0.1 for row in rows)

    summary = list(csv.DictReader((finished / "summary.csv").read_text().splitlines()))
    assert [line["lambda"] for line in summary] == ["0", "0.5", "1"]
    assert [line["beta_over_lambda"] for line in summary] == ["inf", "0.2", "0.1"]
    for line in summary:
        mine = [row for row in rows if row["lambda"] == float(line["lambda"])]
        assert int(line["n"]) == len(mine) == 3
        for name in ("kl_to_reference", "length"):
            mean = np.mean([row[name] for row in mine])
            assert float(line[name]) == pytest.approx(mean, rel=1e-5, abs=1e-6)
            if line[f"{name}_low"]:  # empty where three prompts agree, which tells too little
                assert float(line[f"{name}_low"]) <= mean + 1e-5 <= float(line[f"{name}_high"]) + 2e-5
        rewards = [row["rewards"]["length:24:30"] for row in mine]
        assert float(line["reward_length:24:30"]) == pytest.approx(np.mean(rewards), rel=1e-5)

    manifest = json.loads((finished / "manifest.json").read_text())
    provenance = manifest["provenance"]
    assert provenance["command"][:3] == ["python", "-m", "eval.sweep"]
    assert provenance["command"][3:-3] == base
    assert {"jax", "flax", "transformers", "python"} <= provenance["versions"].keys()
    assert provenance["device"] and "git" in provenance and provenance["time"]
    assert [model["name"] for model in provenance["models"]] == [str(toy), str(aligned)]
    hashes = [manifest["identity"]["models"]["reference"], *manifest["identity"]["models"]["aligned"]]
    assert hashes == [model["fingerprint"] for model in provenance["models"]]
    assert len(set(hashes)) == 2
    assert manifest["identity"]["dtype"] == "float32"
    assert manifest["identity"]["decode"]["max_new_tokens"] == 24
    assert manifest["extent"] == {
        "num_prompts": 3, "num_samples": 1, "lambda": ["0", "0.5", "1"], "rewards": ["length:24:30"],
        "rows": 4, "mesh": None, "beta": 0.1, "prompts": base[2].partition("=")[2],
    }  # fmt: skip
    # Of the steps of four slots, in chunks of 16; what strengths share is drawn once.
    used = manifest["resources"]
    drawn = sum(len(row["tokens"]) for row in rows) * (1 - used["shared_tokens"])
    chunks = drawn / used["slot_utilization"] / (4 * 16)
    assert chunks == pytest.approx(round(chunks), rel=1e-3) and round(chunks) in range(2, 19)
    assert used["shared_tokens"] > 0
    assert manifest["resources"]["peak_host_bytes"] > 2**26


def test_a_sweep_prints_its_table_and_where_the_files_are(call, base, run):
    code, out, err = call(sweep.main, *base, f"--out={run}", "--beta=0.1")
    assert code == 0 and re.search(r"^devices: \d+ × ", err, re.MULTILINE)
    # Nothing was decoded.
    assert "% full" not in out
    for word in ("λ", "β/λ", "length:24:30", "KL (nats)", "larger λ = smaller β = weaker regularization"):
        assert word in out
    assert f"{run}/: rows.jsonl (9 rows), manifest.json, summary.csv, sweep.png" in out
    cut = {row["lambda"] for row in read_rows(run) if row["finish_reason"] == "length"}
    assert 1.0 in cut and re.search(r"warning: λ = [0-9., ]*1: .*% of the completions were cut off", err)


def test_progress_in_a_log_is_a_few_lines(call, base, tmp_path):
    words = ["--num-samples=4", "--reward=length:24:30", f"--out={tmp_path / 'run'}"]
    code, _, err = call(sweep.main, *base, *words)
    shown = [line for line in re.split("[\r\n]", err) if "completion/s" in line]
    assert code == 0 and 0 < len(shown) <= 4 and "36/36" in shown[-1]


def test_a_smaller_rerun_changes_no_file(call, base, run):
    call(sweep.main, *base, f"--out={run}", "--beta=0.1")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code, _, err = call(sweep.main, *base, f"--out={run}", "--beta=0.1", "--lambda=1", "--num-prompts=1")
    assert code == 0 and "compiled" not in err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_options_may_be_written_with_underscores_and_strengths_begin_with_minus(call, base, run):
    words = ["--num_samples", "1", "--num_prompts=2", "--lambda", "-0.5,1", "--beta=0.1", f"--out={run}"]
    code, out, _ = call(sweep.main, *base, *words)
    assert code == 0 and re.search(
        r"^batch \d+% full \(.+\); peak memory: host \d+\.\d [GM]iB$", out, re.MULTILINE
    )
    strengths = {prompt: set() for prompt in range(3)}
    for row in read_rows(run):
        strengths[row["prompt_id"]].add(row["lambda"])
    assert strengths == {0: {-0.5, 0, 0.5, 1}, 1: {-0.5, 0, 0.5, 1}, 2: {0, 0.5, 1}}


def test_more_samples_and_rewards_change_no_row(call, base, finished, run):
    code, _, _ = call(
        sweep.main, *base, f"--out={run}", "--num-samples=2", "--reward=keywords:a|the", "--beta=0.1"
    )
    assert code == 0
    rows = {(row["prompt_id"], row["sample"], row["lambda"]): row for row in read_rows(run)}
    assert len(rows) == 18
    for row in read_rows(finished):
        there = rows[row["prompt_id"], row["sample"], row["lambda"]]
        assert there["rewards"].keys() == {"length:24:30", "keywords:a|the"}
        there["rewards"].pop("keywords:a|the")
        assert there == row


def test_another_runs_folder_is_refused_and_the_difference_named(refused, base, run, toy):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    out = f"--out={run}"
    for word, message in {
        "--seed=1": "decode.seed is 0 there and 1 here; choose another --out",
        "--temperature=0": "decode.temperature is 1.0 there and 0.0 here",
        "--stop=x": 'decode.stop is [] there and ["x"] here',
        f"--aligned={toy}": "models.aligned is",
        "--dtype=bfloat16": 'dtype is "float32" there and "bfloat16" here, --dtype=float32 goes on as there',
        "--rule=dera_jax.realign:mix": "the module dera_jax.realign has no function mix",
        "--beta=0.2": "beta",
    }.items():
        assert message in refused(sweep.main, *base, out, "--beta=0.1", word)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_other_prompts_are_refused(refused, base, run, tmp_path):
    (tmp_path / "others.txt").write_text("Once upon a time\nLily had a cat\n")
    line = refused(sweep.main, *base, f"--out={run}", "--beta=0.1", f"--prompts={tmp_path / 'others.txt'}")
    assert "prompt 1 is 'Lily had a dog' there and 'Lily had a cat' here" in line


def test_a_folder_of_other_things_is_refused(refused, base, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no run (notes.txt)" in refused(sweep.main, *base, f"--out={tmp_path}")
    found = refused(sweep.main, *base, "--aligned=./gone", f"--out={tmp_path / 'notes.txt'}")
    assert "--out: expected a folder, found a file" in found  # before models are looked for
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_default_folder_is_named_after_models_and_settings(call, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others.txt").write_text("Lily had a cat\n")
    names = []
    for words in ([], ["--lambda=0"], ["--num-prompts=1"], ["--prompts=others.txt"], ["--seed=1"]):
        code, out, _ = call(sweep.main, *base, "--num-prompts=2", "--lambda=1", *words)
        assert code == 0
        names.append(re.search(r"^runs/(\S+)/: ", out, re.MULTILINE)[1])
    first, more_strengths, fewer, others, seed = names
    # What may grow stays in one folder; what may not gets another.
    assert first == more_strengths == fewer and len({first, others, seed}) == 3
    assert re.fullmatch(r"reference-aligned-[0-9a-f]{8}", first)
    assert {path.name for path in Path("runs").iterdir()} == set(names)


def test_a_dry_run_writes_nothing(call, base, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(run)
    code, out, _ = call(sweep.main, *base, "--num-samples=2", "--dry-run")
    assert code == 0 and not list(tmp_path.iterdir())
    assert "18 completions: 3 prompts × 2 samples × 3 strengths, 4 rows at a time" in out
    # Two models of 318 160 parameters of 4 bytes.
    assert re.search(r"memory: \d+\.\d MiB \(weights 2\.4 MiB, caches \d+\.\d MiB, logits", out)
    assert re.search(rf"time: about \d+ s of decoding if no completion ends early \({18 * 24} tokens\)", out)
    assert "folder: runs/reference-aligned-" in out


def test_a_dry_run_knows_what_is_there(call, base, run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    _, out, _ = call(sweep.main, *base, f"--out={run}", "--num-samples=2", "--dry-run")
    assert "18 completions" in out and "9 of them there already" in out
    assert f"if no completion ends early ({9 * 24} tokens)" in out
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_sweep_without_rewards_has_a_table_without_them(call, base, tmp_path):
    code, out, _ = call(sweep.main, *base, f"--out={tmp_path / 'run'}", "--lambda=0,1")
    assert code == 0 and re.search(r"^speed: \d+ tokens/s, all strengths together$", out, re.MULTILINE)
    heading = out.splitlines()[0].split()
    assert heading[:4] == ["λ", "β/λ", "KL", "(nats)"]
    assert all(row["rewards"] == {} for row in read_rows(tmp_path / "run"))


def test_stop_texts_are_written_with_escapes(call, base, tmp_path):
    words = [*base, f"--out={tmp_path / 'run'}", "--stop= the", r"--stop=\x2c", r"--stop=\n"]
    code, _, _ = call(sweep.main, *words)
    rows = read_rows(tmp_path / "run")
    assert code == 0 and any(row["finish_reason"] == "stop" for row in rows)
    for row in rows:
        assert not any(stop in row["completion"] for stop in (" the", ",", "\n"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["decode"]["stop"] == [" the", ",", "\n"]


def test_prompts_bring_their_own_strengths(call, base, finished, tmp_path):
    path = tmp_path / "prompts.jsonl"
    own = (0.5, 1.0, 0.0)
    lines = [json.dumps({"prompt": text, "lambda": x}) for text, x in zip(TEXTS, own, strict=True)]
    path.write_text("\n".join(lines))
    words = [*base, "--lambda=prompt", f"--prompts={path}", f"--out={tmp_path / 'run'}"]
    code, _, _ = call(sweep.main, *words)
    assert code == 0
    expected = [row for row in read_rows(finished) if row["lambda"] == own[row["prompt_id"]]]
    rows = read_rows(tmp_path / "run")
    assert [row["tokens"] for row in sort_rows(rows)] == [row["tokens"] for row in sort_rows(expected)]


def test_two_aligned_models_take_a_grid(call, base, toy, aligned, tmp_path):
    words = [f"--aligned={aligned},{toy}", "--lambda=0:1:1x0:0.5:0.5", f"--out={tmp_path / 'run'}"]
    code, out, _ = call(sweep.main, *base, *words)
    assert code == 0 and "0+0.5" in out
    rows = read_rows(tmp_path / "run")
    assert {tuple(row["lambda"]) for row in rows} == {(0, 0), (0, 0.5), (1, 0), (1, 0.5)}
    assert len(rows) == 12
    # The second aligned model is the reference, so its strength changes nothing.
    tokens = {(row["prompt_id"], *row["lambda"]): row["tokens"] for row in rows}
    assert all(tokens[prompt, x, 0] == tokens[prompt, x, 0.5] for prompt in range(3) for x in (0, 1))


def test_a_prefix_cache_is_told_and_is_no_part_of_the_run(call, tmp_path):
    """Rows that were made without one are gone on from with one."""
    prompts, beginning = tmp_path / "p.txt", "Mira visits Ida. She saw a big red ball near the tree. " * 5
    prompts.write_text("".join(f"{beginning}{end}\n" for end in ("Tom", "Ida ran", "One day", "It was")))
    words = [f"--prompts={prompts}", "--reward=length:1:9", "--max-new-tokens=8", "--lambda=0,1", "--rows=4"]
    out = f"--out={tmp_path / 'run'}"
    code, _, err = call(sweep.main, *words, out, "--num-prompts=1")
    assert code == 0, err

    def manifest():
        return json.loads((tmp_path / "run/manifest.json").read_text())

    before = manifest()
    assert not any(name.startswith("prompt_tokens") for name in before["resources"])
    code, told, err = call(sweep.main, *words, out, "--prefix-cache=on")
    assert code == 0, err
    used = manifest()["resources"]
    assert used["prompt_tokens_cached"] > used["prompt_tokens_read"] > 0
    assert manifest()["identity"] == before["identity"] and len(read_rows(tmp_path / "run")) == 8
    assert re.search(r"\d+% of the prompt tokens came from the prefix cache", told)
