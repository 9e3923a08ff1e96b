"""Prompts whose reference reads something else: λ goes from the contrast, 0, to the prompt, 1, and beyond."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dera_jax import load_policies, load_policy, sweep
from dera_jax.commands import generate as generate_command
from dera_jax.commands import sweep as sweep_command
from dera_jax.commands.parts.weighing import record
from dera_jax.data.completions import read_completion
from dera_jax.data.prompts import Prompt
from dera_jax.data.records import Record
from dera_jax.policies.policy import TOY
from dera_jax.scoring.pairs import encode_pairs, load_pairs
from dera_jax.scoring.score import score_tokens
from tests.support.value_heads import save_random

GOOD, BAD = "Mira visits Ida.", "Bela is tired."
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
HOW = {"num_samples": 3, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def once():
    return load_policies(TOY / "reference", TOY / "reference")


def drawn(policies, prompt: dict, strengths: str) -> list[dict]:
    return list(sweep(policies, [{"id": "x"} | prompt], strengths, **HOW))


def tokens(rows: list[dict]) -> list[list[int]]:
    return [row["tokens"] for row in rows]


def test_strength_0_is_the_contrast_and_1_the_prompt(once):
    rows = drawn(once, {"prompt": GOOD, "contrast": BAD}, "0,1")
    for strength, text in ((0, BAD), (1, GOOD)):
        plain = drawn(once, {"prompt": text}, str(strength))
        assert tokens([row for row in rows if row["lambda"] == strength]) == tokens(plain)
    assert {(row["prompt"], row["contrast"]) for row in rows} == {(GOOD, BAD)}
    of_reference, of_aligned = rows[0]["prompt_tokens"]
    assert of_reference != of_aligned


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_with_and_without_a_context_is_that_instruction(once, chat):
    """Context-aware decoding and guidance: the same by a contrast for each prompt, and by an option for all."""
    if chat:
        system, user = {"role": "system", "content": BAD}, {"role": "user", "content": GOOD}
        own, plain = {"messages": [system, user], "contrast": [user]}, {"messages": [user]}
        told = BAD
    else:
        own, plain, told = {"prompt": f"{BAD} {GOOD}", "contrast": GOOD}, {"prompt": GOOD}, BAD + " {prompt}"
    once = [replace(policy, template=TEMPLATE) for policy in once]
    pair = load_policies(
        TOY / "reference", TOY / "reference", aligned_instruction=told, chat_template=TEMPLATE
    )
    expected, rows = drawn(pair, plain, "2.5"), drawn(once, own, "2.5")
    assert tokens(rows) == tokens(expected)
    assert [row["kl_to_reference"] for row in rows] == [row["kl_to_reference"] for row in expected]
    assert min(row["kl_to_reference"] for row in rows) > 0


def test_rows_with_a_contrast_are_scored_as_they_were_drawn(once):
    """A row is a record of a prompt with its completion; without its contrast it says something else."""
    rows = drawn(once, {"prompt": GOOD, "contrast": BAD, "prefix": " Ida"}, "0.5")
    rows = [row for row in rows if row["finish_reason"] == "length"]
    for lacking in ((), ("contrast",)):
        records = [{n: v for n, v in row.items() if n not in lacking} for row in rows]
        read = [read_completion(once, Record(fields, "rows.jsonl", n)) for n, fields in enumerate(records)]
        prompts, completions = [encoded.tokens for encoded, _ in read], [ids for _, ids in read]
        found = [s.logprobs[0].sum() for s in score_tokens(once, prompts, completions, [(0.5,)], 2)]
        same = np.allclose(found, [row["logprob"] for row in rows], atol=1e-3)
        assert same is not bool(lacking)


def test_the_start_of_an_answer_is_of_both(once):
    read = Prompt.of({"prompt": GOOD, "contrast": BAD, "prefix": " Ida"})
    assert (read.contrasted.text, read.contrasted.prefix) == (BAD, " Ida")
    again = Prompt.of(record(read, (0.5,)))
    assert (again.text, again.contrast, again.prefix, again.lambda_) == (GOOD, BAD, " Ida", 0.5)


def test_another_contrast_is_another_run(tmp_path, capsys):
    def run(contrast: str) -> int:
        file = tmp_path / "p.jsonl"
        file.write_text(json.dumps({"prompt": GOOD, "contrast": contrast}))
        given = [f"--{side}={TOY / 'reference'}" for side in ("reference", "aligned")]
        return sweep_command.main(
            [*given, f"--prompts={file}", "--lambda=1", "--max-new-tokens=4", f"--out={tmp_path / 'run'}"]
        )

    assert run(BAD) == 0
    assert run(BAD) == 0
    assert run("Ida is.") == 2
    assert "the folder holds another run" in capsys.readouterr().err


@pytest.mark.parametrize("chat", [False, True])
def test_a_command_line_has_one_too(once, chat, tmp_path, capsys):
    (tmp_path / "template").write_text(TEMPLATE)
    given = [f"--{side}={TOY / 'reference'}" for side in ("reference", "aligned")]
    given += ["--lambda=2.5", "--max-new-tokens=16", f"--chat-template={tmp_path / 'template'}"]
    asked = [f"--prompt={GOOD}", f"--contrast={BAD}", *["--chat"] * chat]
    assert generate_command.main([*given, *asked]) == 0
    told = capsys.readouterr().out
    once = [replace(policy, template=TEMPLATE) for policy in once]
    fields = {"prompt": GOOD, "contrast": BAD}
    if chat:
        fields = {
            "messages": [{"role": "user", "content": GOOD}],
            "contrast": [{"role": "user", "content": BAD}],
        }
    (row,) = sweep(once, [fields], "2.5", max_new_tokens=16)
    assert f"the reference reads: {BAD}\n" in told
    assert row["completion"].split() == told.split("─\n")[-1].split("\n[")[0].split()


def test_a_contrast_is_of_a_prompt(capsys):
    assert generate_command.main(["--contrast=Hi", "--chat"]) == 2
    assert "--contrast: expected --prompt beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": GOOD, "contrast": [{"role": "user", "content": "x"}]}, "expected a text, as the prompt"),
        (
            {"messages": [{"role": "user", "content": "x"}], "contrast": BAD},
            "expected messages, as the prompt",
        ),
        ({"turns": ["a", "b"], "contrast": [{"role": "user", "content": "x"}]}, "expected one turn, found 2"),
        ({"prompt": GOOD, "contrast": 3}, "contrast: expected a string, found a number"),
        ({"prompt": GOOD, "contrast": ""}, "contrast is empty"),
    ],
)
def test_bad_contrasts_are_told(fields, expected):
    with pytest.raises(ValueError, match=expected):
        Prompt.of(fields)


@pytest.mark.parametrize("way", ["contrast", "instruction"])
def test_pairs_are_read_as_prompts_are(way, tmp_path):
    """Accuracy at λ = 0 is of what the reference reads: the contrast, or the prompt with its instruction."""
    pair = {"chosen": " Ida is sad.", "rejected": " Ida runs."}
    asked = {"contrast": {"prompt": GOOD, "contrast": BAD}, "instruction": {"prompt": GOOD}}[way]
    told = {"reference_instruction": BAD + " {prompt}"} if way == "instruction" else {}
    of_reference = {"contrast": BAD, "instruction": f"{BAD} {GOOD}"}[way]

    def encoded(policies, fields):
        file = tmp_path / "pairs.jsonl"
        file.write_text(json.dumps(pair | fields))
        return encode_pairs(policies, load_pairs(str(file))[0])[0][0]

    once = load_policies(TOY / "reference", TOY / "reference", **told)
    plain = load_policies(TOY / "reference", TOY / "reference")
    found = encoded(once, asked)
    assert found.prompts == (
        encoded(plain, {"prompt": of_reference}).prompts[0],
        encoded(plain, {"prompt": GOOD}).prompts[1],
    )


def test_a_value_head_reads_what_its_reference_reads(tmp_path):
    """A tilted reference with a contrast is the tilted reference that is asked the contrast."""
    save_random(load_policy(TOY / "reference"), str(TOY / "reference"), tmp_path / "head")
    tilted = load_policies(TOY / "reference", tmp_path / "head")

    def kept(prompt: dict) -> list:
        rows = sweep(tilted, [{"id": "x"} | prompt], "0,2", rule="tilt", **HOW)
        return [(row["tokens"], row["logprob"], row["kl_to_reference"]) for row in rows]

    assert kept({"prompt": GOOD, "contrast": BAD}) == kept({"prompt": BAD}) != kept({"prompt": GOOD})


def test_a_value_head_has_no_instruction_of_its_own(tmp_path):
    reference = str(TOY / "reference")
    save_random(load_policy(reference), reference, tmp_path / "head")
    models = reference, [reference, str(tmp_path / "head")]
    told = load_policies(*models, aligned_instruction=["Say more.", None])
    assert [policy.instruction for policy in told] == [None, "Say more.", None]
    with pytest.raises(ValueError, match="a value head reads what the reference reads"):
        load_policies(*models, aligned_instruction=["Say more.", "Say less."])
    with pytest.raises(ValueError, match="one for each of 2 models, found 3"):
        load_policies(*models, aligned_instruction=["a", "b", "c"])
