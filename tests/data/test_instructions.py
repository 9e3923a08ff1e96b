"""What an aligned model alone is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dera_jax import generate, load_policies
from dera_jax.commands import generate as generate_command
from dera_jax.commands import lm_eval, sweep
from dera_jax.commands.options.models import read_instruction
from dera_jax.data.instructions import instructed
from dera_jax.policies.policy import TOY


def user(text):
    return {"role": "user", "content": text}


def test_texts_and_chats_are_told_as_written():
    assert instructed(None, "a", None) == ("a", None)
    assert instructed("Be kind.", "a", None) == ("Be kind.\n\na", None)
    assert instructed("<{prompt}>", "a", None) == ("<a>", None)
    chat = (user("1"), {"role": "assistant", "content": "2"}, user("3"))
    assert instructed("Be kind.", None, chat)[1] == ({"role": "system", "content": "Be kind."}, *chat)
    assert instructed("<{prompt}>", None, chat)[1] == (*chat[:2], user("<3>"))
    system = ({"role": "system", "content": "Rules."}, user("1"))
    assert instructed("Be kind.", None, system)[1][0]["content"] == "Be kind.\n\nRules."
    assert chat[2] == user("3")


def test_one_model_with_and_without_it_is_a_pair():
    """λ = 0 is the model itself, λ = 1 the model that was told, and between them is something else."""
    told = "Bela is tired. "
    plain = load_policies(TOY / "reference", TOY / "reference")
    pair = load_policies(TOY / "reference", TOY / "reference", aligned_instruction=told + "{prompt}")
    settings = dict(max_new_tokens=24, num_samples=3)
    (alone, prompted, between) = (
        [c.tokens for c in generate(pair, ["Mira visits Ida."], lambda_, **settings)]
        for lambda_ in (0.0, 1.0, 0.5)
    )
    assert alone == [c.tokens for c in generate(plain, ["Mira visits Ida."], 0.0, **settings)]
    given = generate(plain, [{"prompt": told + "Mira visits Ida.", "id": 0}], 1.0, **settings)
    assert prompted == [c.tokens for c in given]
    assert between not in (alone, prompted)
    for done in generate(pair, ["Mira visits Ida."], 1.0, **settings):
        assert np.isclose(done.logprobs.sum(), done.model_logprobs[:, 1].sum(), atol=1e-4)


def test_two_instructions_are_the_ends_of_a_dial():
    """Guidance at 0 and 1 are the two prompts by themselves."""
    told = {"reference": "Bela is tired. {prompt}", "aligned": "Bela is happy. {prompt}"}
    pair = load_policies(
        TOY / "reference", TOY / "reference", **{f"{side}_instruction": text for side, text in told.items()}
    )
    plain = load_policies(TOY / "reference", TOY / "reference")
    settings = dict(max_new_tokens=24, num_samples=3)
    for strength, text in enumerate(told.values()):
        made = generate(pair, ["Mira visits Ida."], float(strength), **settings)
        given = [{"prompt": text.format(prompt="Mira visits Ida."), "id": 0}]
        assert [c.tokens for c in made] == [c.tokens for c in generate(plain, given, 1.0, **settings)]


def test_it_may_be_a_file_and_is_part_of_a_run(call, tmp_path):
    file = tmp_path / "rules.txt"
    file.write_text("Say less.\n")
    words = ["--lambda=1", "--num-prompts=1", "--max-new-tokens=8", f"--out={tmp_path / 'run'}"]
    assert call(sweep.main, *words, f"--aligned-instruction={file}")[0] == 0
    assert call(sweep.main, *words, "--aligned-instruction=Say less.")[0] == 0
    code, _, err = call(sweep.main, *words, "--aligned-instruction=Say more.")
    assert code == 2 and "error: " in err and "instructions is" in err
    code, _, err = call(sweep.main, *words)
    assert code == 2 and "instructions" in err


def test_an_empty_one_is_one_line(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    for given in ("  ", str(tmp_path / "empty.txt")):
        for name in ("--aligned-instruction", "--reference-instruction"):
            line = refused(generate_command.main, f"{name}={given}")
            assert f"{name}: expected a text or a file" in line


def test_lm_eval_has_none(refused):
    assert "--aligned-instruction: lm-eval gives all models one text" in refused(
        lm_eval.main, "--tasks=arc_easy", "--aligned-instruction=Be kind.", "--lambda=1"
    )


def greedy(told: dict[str, str], weights: dict[str, float], count: int) -> list[int]:
    """Returns the tokens of  argmax Σ wᵢ h(instruction i),  by torch, one after the other."""
    model = AutoModelForCausalLM.from_pretrained(TOY / "reference").eval()
    tokenizer = AutoTokenizer.from_pretrained(TOY / "reference")
    asked = {name: tokenizer(text, return_tensors="pt").input_ids for name, text in told.items()}
    drawn: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            h = {
                name: model(torch.cat([ids, torch.tensor([drawn], dtype=ids.dtype)], dim=1)).logits[0, -1]
                for name, ids in asked.items()
            }
        drawn.append(int(sum(weights[name] * logits for name, logits in h.items()).argmax()))
    return drawn


def test_one_for_each_aligned_model_are_several_contrasts():
    """Two objectives, each a good and a bad prompt, added up: the formula of MCA and of Drift, by torch."""
    task = "Mira visits Ida."
    told = {
        "none": task,
        "good": f"Bela is happy. {task}", "bad": f"Bela is tired. {task}",
        "long": f"Once upon a time there was a big dog. {task}", "short": f"A dog. {task}",
    }  # fmt: skip
    weights = {"none": 1.0, "good": 0.7, "bad": -0.7, "long": 0.4, "short": -0.4}
    several = [told[name].replace(task, "{prompt}") for name in list(told)[1:]]
    once = str(TOY / "reference")
    policies = load_policies(once, [once] * 4, aligned_instruction=several)
    (made,) = generate(policies, [task], (0.7, -0.7, 0.4, -0.4), temperature=0, max_new_tokens=20)
    assert list(made.tokens) == greedy(told, weights, 20)[: len(made.tokens)]
    (plain,) = generate(policies, [task], (0.0,) * 4, temperature=0, max_new_tokens=20)
    assert list(plain.tokens) != list(made.tokens)


def test_several_are_given_one_by_one(call, refused, tmp_path):
    model = str(TOY / "reference")
    (tmp_path / "asked.txt").write_text("Mira visits Ida.\n")
    words = [f"--reference={model}", f"--aligned={model},{model}", "--lambda=1+-1", "--max-new-tokens=4"]
    words += [f"--prompts={tmp_path / 'asked.txt'}", f"--out={tmp_path / 'run'}"]
    given = ["--aligned-instruction=Say more.", "--aligned-instruction=none"]
    assert call(sweep.main, *words, *given)[0] == 0
    code, _, err = call(sweep.main, *words, *given[:1] * 2)
    assert code == 2 and "instructions" in err
    line = refused(sweep.main, *words, *given, "--aligned-instruction=x")
    assert "--aligned-instruction: expected one, or one for each of 2 aligned models, found 3" in line


def test_a_file_that_is_not_there_is_no_instruction(refused, tmp_path):
    """A word with slashes, or with the ending of a text file, was meant to be a file."""
    for given in (tmp_path / "happi.txt", "happi.txt", tmp_path):
        line = refused(generate_command.main, f"--aligned-instruction={given}")
        assert "no such file" in line or "found a folder" in line
    assert read_instruction("{prompt}/", "x") == "{prompt}/" and read_instruction("Brief!", "x") == "Brief!"
    assert read_instruction("Use and/or.", "x") == "Use and/or."


@pytest.mark.parametrize("given", [5, b"ab", [1], ["a", b"b"], {"a"}, Path("a")])
def test_what_is_no_text_is_no_instruction(given):
    with pytest.raises(TypeError, match="aligned_instruction: expected a text, or a list of them"):
        load_policies(TOY / "reference", [TOY / "aligned"] * 2, aligned_instruction=given)
