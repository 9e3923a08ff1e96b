"""The commands as a user meets them: options, one-line errors, files, interruptions."""

import csv
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
from safetensors.numpy import load_file, save_file

from dera_jax import load_policies, load_prompts, read_rows, save_policy
from dera_jax.commands import cli, dera, dpo, generate, plot, reward, rlhf, sft, sweep
from dera_jax.commands import score as score_command
from dera_jax.divergence import kl_per_token
from dera_jax.results import sort_rows

ROOT = Path(__file__).parents[1]
TEXTS = ["Once upon a time", "Lily had a dog", "Tom saw"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def aligned(pair, tmp_path_factory):
    """A folder with the second policy of the pair."""
    folder = tmp_path_factory.mktemp("models") / "aligned"
    save_policy(pair[1], folder)
    return folder


@pytest.fixture(scope="module")
def models(stories, aligned):
    return [f"--reference={stories}", f"--aligned={aligned}"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return f"--prompts={path}"


@pytest.fixture(scope="module")
def base(models, prompts):
    """The options of all sweeps here, of one shape, so that little is compiled."""
    return [*models, prompts, "--max-new-tokens=24", "--rows=4", "--lambda=0,0.5,1"]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A folder that a sweep has completed; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert sweep.main([*base, f"--out={out}", "--reward=length:24:30", "--beta=0.1"]) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def call(capsys, monkeypatch):
    """A command called as a process would be: words to exit code, standard output and error."""
    monkeypatch.setenv("COLUMNS", "100")

    def called(main, *words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def refused(call):
    """A command that must fail before it starts: words to the one line it says."""

    def called(main, *words):
        code, out, err = call(main, *words)
        lines = [line for line in err.splitlines() if not line.startswith(("devices: ", "loaded "))]
        assert (code, out, len(lines)) == (2, "", 1), err
        assert lines[0].startswith("error: ")
        return lines[0]

    return called


@pytest.fixture
def fails(call):
    """A command that fails while it runs: words to the last line it says."""

    def called(main, *words):
        code, _, err = call(main, *words)
        assert code == 2 and "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("error: ") and err.count("error: ") == 1
        return last

    return called


# Help

MODEL = ["--reference", "--aligned", "--dtype"]
DECODE = [
    "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--stop", "--seed", "--rows", "--rule"
]  # fmt: skip
TRAIN = [
    "--model", "--data", "--out", "--dtype", "--learning-rate", "--max-steps", "--batch-size",
    "--warmup-ratio", "--lr-scheduler-type", "--weight-decay", "--max-grad-norm", "--seed",
]  # fmt: skip
OPTIONS = {
    sweep: [*MODEL, *DECODE, "--lambda", "--prompts", "--reward", "--out", "--num-prompts", "--num-samples",
            "--beta", "--config", "--dry-run"],
    generate: [*MODEL, *DECODE, "--lambda", "--prompt", "--num-samples"],
    score_command: [*MODEL, "RUN", "--reward", "--pairs", "--models", "--prompts", "--lambda", "--out"],
    plot: ["RUN", "--table", "--out", "markdown", "latex"],
    sft: [*TRAIN, "--from-scratch", "--max-length"],
    reward: [*TRAIN, "--eval-share", "--max-length", "--center-rewards-coefficient"],
    dpo: [*TRAIN, "--reference", "--beta", "--loss", "--lora-r", "--sync-ref-model", "--label-smoothing"],
    rlhf: [*TRAIN, "--reference", "--reward", "--beta", "--num-samples", "--max-new-tokens", "--algorithm"],
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_help_names_every_option_and_fits_100_columns(call, command):
    code, out, err = call(command.main, "--help")
    assert (code, err) == (0, "")
    words = set(re.findall(r"--[\w-]+|\w+", out))
    assert set(OPTIONS[command]) <= words
    assert max(map(len, out.splitlines())) <= 100
    # Every option says what it is.
    described = re.findall(r"^  (?:-h, )?(--[\w-]+).*\n?(?:   .+\n)*", out, re.MULTILINE)
    assert set(described) >= {option for option in OPTIONS[command] if option.startswith("--")}


def test_dera_runs_the_commands(call, refused):
    code, out, _ = call(dera.main, "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    assert set(dera.COMMANDS) <= set(re.findall(r"\w+", out))
    for name in dera.COMMANDS:
        code, out, err = call(dera.main, name, "--help")
        assert (code, err) == (0, "") and f".{name} " in out.splitlines()[0]
    assert "unknown command 'swep'; expected one of sweep, " in refused(dera.main, "swep")
    assert "no command" in refused(dera.main)
    assert "--lambda" in refused(dera.main, "sweep", "--lambda=x")


# Wrong arguments


WRONG = {
    "--lambda=nan": "expected a finite number such as 0.5 or 1/6, found 'nan'",
    "--lambda=strong": "expected a finite number such as 0.5 or 1/6, found 'strong'",
    "--lambda=": "a number is missing",
    "--lambda=0:1": "the range '0:1' has no step",
    "--lambda=0.5+0.5": "expected one number for the one aligned model",
    "--lambda=1e39": "too large for float32",
    "--lambda": "argument --lambda: expected one argument",
    "--num-prompts=0": "--num-prompts: expected a whole number, at least 1, got 0",
    "--num-samples=-2": "--num-samples: expected a whole number, at least 1, got -2",
    "--num-samples=two": "argument --num-samples: invalid int value: 'two'",
    "--max-new-tokens=0": "max_new_tokens: expected a whole number, at least 1, got 0",
    "--max-new-tokens=600": "it has room for --max-new-tokens=5",
    "--temperature=-1": "temperature: expected a number from 0 to inf, got -1.0",
    "--temperature=nan": "temperature: expected a number",
    "--temperature=warm": "invalid float value: 'warm'",
    "--top-p=0": "top_p: expected a number in (0, 1], got 0",
    "--top-p=2": "top_p: expected a number from 0 to 1, got 2.0",
    "--top-k=0": "top_k: expected a whole number, at least 1, got 0",
    "--seed=-1": "seed: expected a whole number, at least 0, got -1",
    "--rows=0": "--rows: expected a whole number, at least 1, or auto, got '0'",
    "--rows=many": "--rows: expected a whole number, at least 1, or auto, got 'many'",
    "--beta=-1": "--beta: expected a number from 0 to inf",
    "--beta=nan": "--beta: expected a number",
    "--stop=": "stop: expected texts with at least one character",
    "--stop=\\": "--stop: broken escape",
    "--dtype=int8": "invalid choice: 'int8'",
    "--reward=politeness": "unknown reward 'politeness'; known: length:MIN:MAX[:STOP], lexicon:FILE, ",
    "--reward=length:9": "expected length:MIN:MAX",
    "--reward=lexicon:gone.txt": "lexicon:gone.txt: no such file",
    "--reward=python:json:gone": "has no function gone",
    "--rule=gone:rule": "expected module:function (ModuleNotFoundError: No module named 'gone')",
    "--rule=json:gone": "--rule=json:gone: expected module:function",
    "--rule=json": "--rule=json: expected module:function",
    "--rule=sys:path": "--rule=sys:path: expected a function",
    "--rule=json:dumps": "rule json:dumps fails on logits[models, rows, vocab]: TypeError",
    "--prompts=gone.jsonl": "gone.jsonl: no such file",
    "--prompts=gone": "no file suffix, no shipped name",
    "--aligned=a,,b": "--aligned: a model is missing in 'a,,b'",
    "--aligned=./gone": "./gone: no such folder",
    "--config=gone.json": "gone.json",
    "extra": "unexpected extra",
    "-x": "unexpected -x",
    "--nonsense=1": "unknown option --nonsense (see python -m eval.sweep --help)",
    # No abbreviations, but a hint.
    "--lambd=1": "unknown option --lambd: did you mean --lambda?",
    "--num-sample=1": "unknown option --num-sample: did you mean --num-samples?",
    "--temp=1": "unknown option --temp",
    # Names of other tools.
    "--model=x": "unknown option --model: here it is --reference and --aligned",
    "--ref_model=x": "unknown option --ref-model: here it is --reference",
    "--output_dir=x": "unknown option --output-dir: here it is --out",
    "--max_tokens=9": "unknown option --max-tokens: here it is --max-new-tokens",
    "--batch-size=9": "unknown option --batch-size: here it is --rows",
}  # fmt: skip


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_argument_is_one_line(refused, base, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    assert WRONG[word] in refused(sweep.main, *base, word)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command, words, message",
    [
        (generate, ["--num-samples=0"], "--num-samples"),
        (generate, ["--prompts=x"], "unknown option --prompts: here it is --prompt"),
        (generate, ["--prompt="], "prompt is empty"),
        (generate, ["--reference=x"], "expected both --reference and --aligned"),
        (generate, ["--aligned=x"], "expected both --reference and --aligned"),
        (plot, [], "the following arguments are required: RUN"),
        (plot, ["gone"], "gone"),
        (plot, ["gone", "--table=html"], "invalid choice: 'html'"),
        (score_command, [], "expected one of RUN with --reward, --pairs=FILE, or --models=A,B"),
        (score_command, ["run", "--pairs=x"], "expected one of RUN"),
        (score_command, ["run"], "RUN: expected --reward"),
        (score_command, ["gone", "--reward=length:1:2"], "gone: no such folder"),
        (score_command, ["run", "--reward=length:1:2", "--lambda=1"], "--lambda has no meaning with RUN"),
        (score_command, ["--pairs=x", "--reward=length:1:2"], "--reward has no meaning with --pairs"),
        (score_command, ["--pairs=gone.jsonl"], "gone.jsonl: no such file"),
        (score_command, ["--pairs=gone.jsonl", "--rule=a:b"], "unknown option --rule"),
        (score_command, ["--models=a"], "--models: expected two models A,B, found 'a'"),
        (score_command, ["--models=a,"], "--models: expected two models A,B, found 'a,'"),
        (score_command, ["--models=a,b"], "expected --prompts"),
        (score_command, ["--models=a,b", "--num-prompts=0", "--prompts=chat"], "at least 1, found 0"),
        (sft, ["--output_dir=x"], "unknown option --output-dir: here it is --out"),
        (sft, ["--dataset_name=x"], "unknown option --dataset-name: here it is --data"),
        (sft, ["--model=x"], "the following arguments are required: --out, --data"),
        (rlhf, ["--lr=1"], "unknown option --lr: here it is --learning-rate"),
        (
            rlhf,
            ["--bf16", "--reward_model_path=x"],
            "unknown option --bf16: here it is --dtype=bfloat16; "
            "unknown option --reward-model-path: here it is --reward=model:DIR",
        ),
        (
            dpo,
            ["--loss_type=ipo", "--logging-steps=1"],
            "unknown option --loss-type: here it is --loss; "
            "unknown option --logging-steps: every step is logged",
        ),
    ],
)
def test_a_wrong_argument_of_other_commands_is_one_line(
    refused, tmp_path, monkeypatch, command, words, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(command.main, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"prompt": "a"}\n{"prompt": \n', ":2: not valid JSON"),
        ('{"prompt": "a"}\n\n{"prompt": ""}\n', ":3: prompt is empty"),
        ('{"prompt": "a"}\n{"text": "b"}\n', ":2: expected one of the fields 'prompt', 'messages' and 'turns'"),
        ('{"prompt": "a"}\n[1]\n', ":2: expected a JSON object, found a list"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b"}\n', "id 1 is already taken"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "prompt 0: the prompt has `messages`"),
        (json.dumps({"prompt": "and " * 500, "id": "long"}), "prompt 'long': "),
        ("", "no prompts in it"),
    ],
)  # fmt: skip
def test_broken_prompts_are_named_by_file_and_line(refused, models, tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    assert message in refused(sweep.main, *models, f"--prompts={path}", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_strengths_of_prompts_must_be_there(refused, base):
    assert "prompt 0 has no `lambda`, which --lambda=prompt needs" in refused(
        sweep.main, *base, "--lambda=prompt"
    )


# Models that cannot serve


@pytest.fixture
def copied(stories, tmp_path):
    """A copy of a model, to be spoilt."""
    return Path(shutil.copytree(stories, tmp_path / "copy"))


def spoil_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_other_vocabularies_are_refused(refused, base, copied):
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    word = max(vocab, key=vocab.get)
    vocab["otherword"] = vocab.pop(word)
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


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's module in the folder that the command is called from."""
    name = f"mine_{random.randrange(10**9)}"
    (tmp_path / f"{name}.py").write_text(
        "import jax.numpy as jnp\n"
        "def mixture(logits, weights, state):\n"
        "    return jnp.einsum('mrv,rm->rv', logits, weights, precision='highest'), state\n"
        "def nan(logits, weights, state):\n"
        "    return logits[0] * jnp.nan, state\n"
        "def few(completions):\n"
        "    return [1.0]\n"
        "def words(completions, **columns):\n"
        "    return [float(len(text.split())) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name


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


# Sweeps


def test_a_sweep_writes_what_it_promises(finished, base, stories, aligned):
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
        assert float(line["reward_length:24:30"]) == np.mean(rewards)

    manifest = json.loads((finished / "manifest.json").read_text())
    provenance = manifest["provenance"]
    assert provenance["command"][:3] == ["python", "-m", "eval.sweep"]
    assert provenance["command"][3:-3] == base
    assert {"jax", "flax", "transformers", "python"} <= provenance["versions"].keys()
    assert provenance["device"] and "git" in provenance and provenance["time"]
    assert [model["name"] for model in provenance["models"]] == [str(stories), str(aligned)]
    hashes = [manifest["identity"]["models"]["reference"], *manifest["identity"]["models"]["aligned"]]
    assert hashes == [model["fingerprint"] for model in provenance["models"]]
    assert len(set(hashes)) == 2
    assert manifest["identity"]["dtype"] == "float32"
    assert manifest["identity"]["decode"]["max_new_tokens"] == 24
    assert manifest["extent"] == {
        "num_prompts": 3, "num_samples": 1, "lambda": ["0", "0.5", "1"], "rewards": ["length:24:30"],
        "rows": 4, "mesh": None, "beta": 0.1, "prompts": base[2].partition("=")[2],
    }  # fmt: skip
    # Nine completions of 24 tokens in four slots take three times two chunks of 16 steps.
    assert manifest["resources"]["slot_utilization"] == 9 * 24 / (3 * 2 * 16 * 4)
    assert manifest["resources"]["peak_host_bytes"] > 2**26


def test_a_sweep_prints_its_table_and_where_the_files_are(call, base, run):
    code, out, err = call(sweep.main, *base, f"--out={run}", "--beta=0.1")
    assert code == 0 and re.search(r"^devices: \d+ × ", err, re.MULTILINE)
    # Nothing was decoded.
    assert "slots busy" not in out
    for word in ("λ", "β/λ", "length:24:30", "KL (nats)", "larger λ = smaller β = weaker regularization"):
        assert word in out
    assert f"{run}/: rows.jsonl (9 rows), manifest.json, summary.csv, sweep.png" in out
    assert "warning: λ = 0, 0.5, 1: 100% of the completions were cut off" in err


def test_a_smaller_rerun_changes_no_file(call, base, run):
    call(sweep.main, *base, f"--out={run}", "--beta=0.1")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code, _, err = call(sweep.main, *base, f"--out={run}", "--beta=0.1", "--lambda=1", "--num-prompts=1")
    assert code == 0 and "compiled" not in err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_options_may_be_written_with_underscores_and_strengths_begin_with_minus(call, base, run):
    words = ["--num_samples", "1", "--num_prompts=2", "--lambda", "-0.5,1", "--beta=0.1", f"--out={run}"]
    code, out, _ = call(sweep.main, *base, *words)
    assert code == 0 and re.search(r"^slots busy \d+%; peak memory: host \d+\.\d [GM]iB$", out, re.MULTILINE)
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


def test_another_runs_folder_is_refused_and_the_difference_named(refused, base, run, stories):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    out = f"--out={run}"
    for word, message in {
        "--seed=1": "decode.seed is 0 there and 1 here; choose another --out",
        "--temperature=0": "decode.temperature is 1.0 there and 0.0 here",
        "--stop=x": 'decode.stop is [] there and ["x"] here',
        f"--aligned={stories}": "models.aligned is",
        "--dtype=bfloat16": 'dtype is "float32" there and "bfloat16" here',
        "--rule=dera_jax.realign:mix": "expected module:function",
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
    assert re.fullmatch(r"stories260K-aligned-[0-9a-f]{8}", first)
    assert {path.name for path in Path("runs").iterdir()} == set(names)


def test_a_dry_run_writes_nothing(call, base, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(run)
    code, out, _ = call(sweep.main, *base, "--num-samples=2", "--dry-run")
    assert code == 0 and not list(tmp_path.iterdir())
    assert "18 completions: 3 prompts × 2 samples × 3 strengths, 4 rows at a time" in out
    # Two models of 260 032 parameters of 4 bytes.
    assert re.search(r"memory: \d+\.\d MiB \(weights 2\.0 MiB, caches \d+\.\d MiB, logits", out)
    assert re.search(rf"time: at most \d+ s, if all {18 * 24} tokens are drawn", out)
    assert "folder: runs/stories260K-aligned-" in out


def test_a_dry_run_knows_what_is_there(call, base, run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    _, out, _ = call(sweep.main, *base, f"--out={run}", "--num-samples=2", "--dry-run")
    assert "18 completions" in out and "9 of them there already" in out
    assert f"if all {9 * 24} tokens are drawn" in out
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_sweep_without_rewards_has_a_table_without_them(call, base, tmp_path):
    code, out, _ = call(sweep.main, *base, f"--out={tmp_path / 'run'}", "--lambda=0,1")
    assert code == 0
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


def test_two_aligned_models_take_a_grid(call, base, stories, aligned, tmp_path):
    words = [f"--aligned={aligned},{stories}", "--lambda=0:1:1x0:0.5:0.5", f"--out={tmp_path / 'run'}"]
    code, out, _ = call(sweep.main, *base, *words)
    assert code == 0 and "0+0.5" in out
    rows = read_rows(tmp_path / "run")
    assert {tuple(row["lambda"]) for row in rows} == {(0, 0), (0, 0.5), (1, 0), (1, 0.5)}
    assert len(rows) == 12
    # The second aligned model is the reference, so its strength changes nothing.
    tokens = {(row["prompt_id"], *row["lambda"]): row["tokens"] for row in rows}
    assert all(tokens[prompt, x, 0] == tokens[prompt, x, 0.5] for prompt in range(3) for x in (0, 1))


# Settings from a file


def test_a_config_file_stands_for_options(call, models, prompts, finished, tmp_path):
    path = tmp_path / "sweep.json"
    settings = {
        "lambda": [0, 0.5], "max_new_tokens": 24, "rows": 4, "prompts": prompts.partition("=")[2],
        "reward": ["length:24:30", "keywords:a"], "stop": ["x\\n", "y,z"], "seed": None, "dry-run": False,
        "num-prompts": 1,
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    out = tmp_path / "run"
    code, _, _ = call(sweep.main, *models, f"--config={path}", f"--out={out}", "--num_prompts=2")
    assert code == 0
    rows = read_rows(out)
    # The command line wins.
    assert {(row["prompt_id"], row["lambda"]) for row in rows} == {(0, 0), (0, 0.5), (1, 0), (1, 0.5)}
    assert all(row["rewards"].keys() == {"length:24:30", "keywords:a"} for row in rows)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["identity"]["decode"]["stop"] == ["x\n", "y,z"]
    code, _, _ = call(sweep.main, *models, f"--config={path}", f"--out={tmp_path / 'two'}", "--stop=q")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["identity"]["decode"]["stop"] == ["q"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "sweep.json: not JSON"),
        ("[1]", "sweep.json: expected a JSON object with option names as keys"),
        ('{"model": "x"}', "sweep.json: unknown option --model: here it is --reference and --aligned"),
        ('{"help": true}', "sweep.json: unknown option --help"),
        ('{"seed": true}', "sweep.json: seed: expected a string, a number or a list of them, found True"),
        ('{"seed": {"a": 1}}', "sweep.json: seed: expected a string, a number"),
        ('{"dry_run": 1}', "sweep.json: dry-run: expected true or false, found 1"),
        ('{"seed": "x"}', "argument --seed: invalid int value: 'x'"),
        ('{"lambda": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_broken_config_file_is_one_line(refused, base, tmp_path, content, message):
    (tmp_path / "sweep.json").write_text(content)
    assert message in refused(sweep.main, *base, f"--config={tmp_path / 'sweep.json'}")


# Devices


def test_an_accelerator_that_is_not_used_is_told(refused, base, monkeypatch):
    import jax

    if jax.devices()[0].platform != "cpu":
        pytest.skip("runs on an accelerator")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr("dera_jax.commands.cli.glob.glob", lambda pattern: [pattern.partition("[")[0] + "0"])
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


@pytest.fixture
def long(models, prompts):
    """Options of a sweep that takes some seconds."""
    return [*models, prompts, "--max-new-tokens=64", "--rows=8", "--lambda=0,0.5,1,1.5", "--num-samples=48",
            "--reward=length:10:64,keywords:a|the"]  # fmt: skip


def start(words):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "eval.sweep", *words], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def count(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


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
                f"interrupted: {run} keeps what has ended; the same command goes on from there"
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
        (OSError(errno.EACCES, "Permission denied", "x"), "error: [Errno 13] Permission denied: 'x'"),
        (ValueError("one\n  two"), "error: one two"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(call, error, line):
    def fail(argv):
        raise error

    code, out, err = call(cli.command(fail))
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_a_bug_shows_where_it_is():
    def fail(argv):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.command(fail)([])


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
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


# Strengths side by side


def test_generate_shows_strengths_side_by_side(call, models, finished):
    words = [*models, f"--prompt={TEXTS[0]}", "--max-new-tokens=24", "--rows=4", "--lambda=0,0.5,1"]
    code, out, err = call(generate.main, *words)
    assert code == 0 and err.startswith("devices: ")
    lines = out.splitlines()
    assert lines[0] == f"prompt: {TEXTS[0]}" and max(map(len, lines)) <= 100
    titles, rule, *body = lines[2:]
    assert [title.strip() for title in titles.split("│")] == ["λ = 0", "λ = 0.5", "λ = 1"]
    assert set(rule) == {"─", "│", " "}
    columns = zip(
        *[[cell.strip() for cell in line.ljust(100).split("│")] for line in body if line], strict=True
    )
    texts = [" ".join(cell for cell in column if cell) for column in columns]
    expected = [row["completion"] for row in sort_rows(read_rows(finished)) if row["prompt_id"] == 0]
    assert [text.split() for text in texts] == [text.split() for text in expected]


@pytest.mark.parametrize("width, across", [(200, 4), (100, 3), (60, 2), (28, 1), (10, 1)])
def test_columns_fit_the_terminal(width, across):
    texts = {f"λ = {i}": " ".join(f"word{i}{j}" for j in range(30)) + "\nEnd.\x1b[2J" for i in range(4)}
    shown = generate.side_by_side(texts, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "\x1b" not in shown
    assert shown.splitlines()[0].count("│") == across - 1
    found = re.findall(r"λ = \d|word\d+|End", shown)
    assert sorted(found) == sorted(re.findall(r"λ = \d|word\d+|End", " ".join([*texts, *texts.values()])))


def test_generate_shows_every_sample(call, models):
    words = [*models, "--prompt=Tom saw", "--max-new-tokens=24", "--rows=4", "--lambda=1", "--num-samples=3"]
    code, out, _ = call(generate.main, *words)
    assert code == 0 and out.count("λ = 1") == 3


# Figures and tables


def test_plot_draws_a_figure_and_prints_tables(call, run):
    (run / "sweep.png").unlink()
    code, out, _ = call(plot.main, run)
    assert (code, out.strip()) == (0, str(run / "sweep.png"))
    assert (run / "sweep.png").read_bytes().startswith(PNG)
    code, out, _ = call(plot.main, run, "--table=markdown")
    assert code == 0 and out.startswith("| λ | β/λ | `length:24:30` |")
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["0", "0.5", "1"]
    code, out, _ = call(plot.main, run, "--table=latex")
    assert code == 0 and out.startswith(r"\begin{tabular}") and r"$\beta/\lambda$" in out


def test_plot_takes_several_runs_and_files_of_rows(call, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other" / "run")
    code, _, _ = call(plot.main, run, other / "rows.jsonl", f"--out={tmp_path / 'both.png'}")
    assert code == 0 and (tmp_path / "both.png").read_bytes().startswith(PNG)
    code, out, _ = call(plot.main, run, other / "rows.jsonl", "--table=terminal")
    # Runs of one name are told apart.
    assert code == 0 and str(run) in out and str(other / "rows.jsonl") in out


def test_plot_refuses_a_run_that_is_not_complete(call, refused, run):
    rows = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(rows[:-1]))
    assert "1 completion is missing, the first at λ = " in refused(plot.main, run)
    code, out, err = call(plot.main, run, "--table=markdown", "--allow-missing")
    assert code == 0 and out.startswith("| λ |") and err.startswith("warning: ")


def test_plot_says_what_is_wrong_with_a_run(refused, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert "no rows yet" in refused(plot.main, tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt_id": 0}\n{}\n')
    assert "rows.jsonl:1: broken row: no 'sample' in it" in refused(plot.main, tmp_path)


# Scores


def test_score_adds_a_reward_to_stored_rows(call, run, finished, mine, monkeypatch):
    monkeypatch.setattr("dera_jax.decode.decode_chunk", None)
    code, out, _ = call(score_command.main, run, f"--reward=python:{mine}:words")
    assert code == 0 and "rewards added to rows.jsonl" in out and "length:24:30" in out
    for row, before in zip(read_rows(run), read_rows(finished), strict=True):
        assert row["rewards"].pop(f"python:{mine}:words") == len(row["completion"].split())
        assert row == before
    assert f"reward_python:{mine}:words" in (run / "summary.csv").read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["commands"][-1]["command"][:4] == ["python", "-m", "eval.score", str(run)]
    code, out, _ = call(score_command.main, run, f"--reward=python:{mine}:words")
    assert code == 0 and "nothing to add" in out


def test_score_of_pairs_prints_and_writes_accuracies(call, models, tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": TEXTS[0], "chosen": ", there was a little girl.", "rejected": " dog the of ran red."}
    path.write_text(
        json.dumps(good) + "\n" + json.dumps(good | {"chosen": "of of", "rejected": ", there was"})
    )
    words = [f"--pairs={path}", "--lambda=0,1", f"--out={tmp_path / 'pairs.json'}"]
    code, out, _ = call(score_command.main, *models, *words)
    assert code == 0 and "2 pairs" in out and "accuracy (Eq. 14)" in out
    table = json.loads((tmp_path / "pairs.json").read_text())
    assert [line["lambda"] for line in table] == [0.0, 1.0]
    assert table[0]["accuracy"]["mean"] == 0.5 and table[0]["implicit_reward_accuracy"] is None


def test_score_of_models_is_the_mean_divergence(call, stories, aligned, prompts, tmp_path):
    out = tmp_path / "kl.json"
    code, text, _ = call(score_command.main, f"--models={aligned},{stories}", prompts, f"--out={out}")
    assert code == 0 and text.startswith(f"KL({aligned} ‖ {stories}) = ")
    found = json.loads(out.read_text())
    # KL of A against B: B is the reference. Held against torch in test_stored.
    expected = kl_per_token(load_policies(stories, aligned), load_prompts(prompts.partition("=")[2]), rows=3)
    # Other rows share its batches, and the longest of a batch decides how its queries are split.
    told = {"mean": expected.mean, "low": expected.low, "high": expected.high}
    assert found["kl_per_token"] == pytest.approx(told, rel=1e-4)
    assert found["models"] == [str(aligned), str(stories)] and found["prompts"] == 3
    assert f"{expected.mean:.4g} ± {expected.half_width:.2g} nats per token" in text
    code, same, _ = call(score_command.main, f"--models={stories},{stories}", prompts, "--num-prompts=1")
    assert code == 0 and "= 0 nats per token, on 1 texts" in same
