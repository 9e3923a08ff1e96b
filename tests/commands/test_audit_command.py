"""From a sweep of the toy pair back to how it was decoded; what is refused."""

import json

import pytest

from dera_jax.commands import audit, sweep
from dera_jax.results.reading import read_rows


def call(capsys, *words):
    code = audit.main(list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "run"
    words = ["--lambda=0,1", "--temperature=1.5", "--top-k=4", "--num-prompts=64", "--max-new-tokens=24"]
    assert sweep.main([*words, f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def file(run):
    """The completions of the run as a file from elsewhere."""
    rows = [row for row in read_rows(run) if row["lambda"] == 1][:20]
    path = run.parent / "given.jsonl"
    path.write_text("".join(json.dumps({k: row[k] for k in ("prompt", "tokens")}) + "\n" for row in rows))
    return path


def test_a_sweep_is_decoded_as_it_says(run, capsys, tmp_path):
    out = tmp_path / "audit.json"
    words = ["--expect=temperature=1.5,top_k=4,top_p=none", f"--out={out}"]
    code, told, _ = call(capsys, run, "--lambda=1", *words)
    assert code == 0 and "temperature=1.5 agrees; top_k=4 agrees; top_p=none agrees" in told
    found = json.loads(out.read_text())
    assert found["lambda"]["low"] <= 1 <= found["lambda"]["high"] and found["top_k"]["value"] == 4
    assert found["beta"] == 0.1 and "β/λ" in told
    assert found["divergence"] > 0.05 and found["completions"] == 64


def test_a_file_of_completions_is_read(file, capsys):
    code, told, error = call(capsys, file, "--temperature=1.5", "--expect=lambda=-9")
    assert code == 1 and "lambda=-9 disagrees" in told and "of 20 completions" in told, error


PROMPT = {"prompt": "Mira visits Ida."}


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "no prompts in it"),
        ([PROMPT], "completion: expected a string"),
        ([{**PROMPT, "completion": ""}], "at least one token, found none"),
        ([{**PROMPT, "completion": " She is</s> glad."}], "expected `tokens`"),
        ([{**PROMPT, "tokens": [9, 5000]}], "token 5000 is none of the 512 words"),
        ([{**PROMPT, "tokens": [9.5]}], "tokens: expected a list of token ids"),
        ([{**PROMPT, "tokens": [9, 10], "completion": " She is glad."}], "reads them otherwise"),
        ([{"completion": " Yes."}], "expected one of the fields 'prompt'"),
    ],
)  # fmt: skip
def test_broken_completions_are_one_line(records, told, capsys, tmp_path):
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, _, error = call(capsys, path)
    lines = [line for line in error.splitlines() if not line.startswith(("devices", "loaded"))]
    assert code == 2 and told in error and len(lines) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--expect=alpha=1"], "--expect: expected each of lambda"),
        (["--expect=lambda=x"], "--expect: lambda: expected a number"),
        (["--expect=lambda=nan"], "--expect: lambda: expected a number"),
        (["--expect=top_k=2.5"], "--expect: top_k: expected a whole number"),
        (["--expect=lambda=1,lambda=2"], "twice"),
        (["--temperature=0"], "--temperature: expected a number"),
        (["--temperature=nan"], "--temperature: expected a number"),
        (["--reference=a", "--aligned=b,c"], "expected one aligned model, found 2"),
        ([], "--lambda: expected one strength of"),
        (["--lambda=3"], "which has 0, 1"),
        (["--num-prompts=3"], "--num-prompts has no meaning with RUN"),
        (["--out=nowhere/a.json"], "there is no folder"),
    ],
)
def test_wrong_options_are_one_line(run, words, told, capsys):
    code, _, error = call(capsys, run, *words)
    assert code == 2 and told in error and error.count("\n") == 1


def test_a_file_that_is_not_there(capsys):
    code, _, error = call(capsys, "nowhere.jsonl")
    assert code == 2 and error == "nowhere.jsonl: no such run or file\n".join(["error: ", ""])


def test_few_tokens_tell_neither_a_strength_nor_a_temperature(tmp_path, capsys):
    """One that is the most probable word is drawn so at most temperatures."""
    out = tmp_path / "run"
    assert (
        sweep.main(
            ["--lambda=0.5", "--temperature=0", "--num-prompts=1", "--max-new-tokens=1", f"--out={out}"]
        )
        == 0
    )
    code, told, _ = call(capsys, out)
    lines = dict(line.split("  ", 1) for line in told.splitlines() if "  " in line)
    assert code == 0 and lines["λ"].strip().startswith("[") and "β/λ" not in lines
    assert "too few tokens to tell greedy decoding from sampling" in lines["temperature"]
