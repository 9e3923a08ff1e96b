"""Options of the training commands that have a law of their own: TRL's learning rates, chat templates."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from dera_jax import read_rows
from dera_jax.analysis.tuning.retraining import training_words
from dera_jax.commands import dpo, reward, rlhf, sft, sweep
from dera_jax.commands.options.cli import Parser
from dera_jax.policies.policy import TOY
from dera_jax.policies.tokenizers import load_tokenizer

COUNTERPARTS = [(sft, "sft"), (dpo, "dpo"), (dpo, "kto"), (reward, "reward"), (rlhf, "rloo")]


def default_rate(command, monkeypatch):
    """Returns the default of a command's --learning-rate."""
    found = []

    def read(parser, *_):
        found.append(parser.get_default("learning_rate"))
        raise SystemExit

    monkeypatch.setattr(Parser, "parse_args", read)
    with pytest.raises(SystemExit):
        command.main([])
    return found[0]


@pytest.mark.parametrize("command, name", COUNTERPARTS, ids=[name for _, name in COUNTERPARTS])
def test_learning_rates_are_those_of_trl(command, name, monkeypatch):
    spec = find_spec("trl")
    if spec is None:
        pytest.skip("no TRL")
    tree = ast.parse((Path(spec.origin).parent / "trainer" / f"{name}_config.py").read_text(encoding="utf-8"))
    (theirs,) = (
        keyword.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and node.target.id == "learning_rate"
        for keyword in node.value.keywords
        if keyword.arg == "default"
    )
    assert default_rate(command, monkeypatch) == theirs


def test_a_recorded_command_is_repeated_at_the_rate_that_it_had(tmp_path):
    manifest = {
        "provenance": {"command": ["python", "-m", "train.dpo", "--model=m"]},
        "train_config": {"seed": 0, "learning_rate": 1e-5},
    }
    _, words = training_words(manifest, "m", 0.05, tmp_path)
    assert "--learning-rate=1e-05" in words
    for given in (["--learning-rate=0.1"], ["--learning_rate", "0.1"]):
        manifest["provenance"]["command"] = ["python", "-m", "train.dpo", *given]
        _, words = training_words(manifest, "m", 0.05, tmp_path)
        assert words[: len(given)] == given and "--learning-rate=1e-05" not in words


def test_huge_counts_are_refused_before_anything_is_loaded(refused, tmp_path):
    words = ["--model=gone", "--data=gone.txt", f"--out={tmp_path / 'out'}"]
    for option, most in [
        ("--batch-size", 10**5), ("--max-steps", 10**9), ("--lora-r", 10**5), ("--max-length", 10**6)
    ]:  # fmt: skip
        line = refused(sft.main, *words, f"{option}={10**20}")
        assert f"{option}: expected a whole number, at most {most}, got 1000" in line
    assert "--num-train-epochs" in refused(sft.main, *words, "--num-train-epochs=inf")
    # Of what a map has room for its own size decides.
    (tmp_path / "text.txt").write_text("Mira visits Ida.\n")
    here = [f"--model={TOY / 'reference'}", f"--data={tmp_path / 'text.txt'}", words[2]]
    for command in (sft, reward):
        line = refused(command.main, *here, "--lora-r=9999")
        assert "--lora-r: expected at most " in line and "the smaller side of blocks.0." in line


# Chat templates

TOLD = '--chat-template-kwargs={"ending": " Orsa."}'
PLAIN = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
OTHER = PLAIN.replace(" {% end", ". {% end")


@pytest.fixture
def chats(tmp_path):
    """Messages, pairs and prompts of the toy's language, and a template."""
    say, answer = "Mira visits Ida.", "She is the tailor of Orsa."
    asked = [{"role": "user", "content": say}]
    lines = {
        "texts": {"messages": [*asked, {"role": "assistant", "content": answer}]},
        "pairs": {
            "prompt": asked,
            "chosen": [{"role": "assistant", "content": answer}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        "prompts": {"messages": asked},
    }
    for name, line in lines.items():
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(line) + "\n") * 4)
    (tmp_path / "plain.jinja").write_text(PLAIN)
    (tmp_path / "other.jinja").write_text(OTHER)
    return tmp_path


SMALL = [f"--model={TOY / 'reference'}", "--max-steps=1", "--batch-size=4"]
COMMANDS = {
    "sft": (sft, "texts", []),
    "dpo": (dpo, "pairs", ["--lora-r=2"]),
    "reward": (reward, "pairs", []),
    "rlhf": (rlhf, "prompts", ["--reward=length:1:9", "--max-new-tokens=4", "--num-prompts=1"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_chat_template_is_given_and_kept(name, chats, call):
    command, data, more = COMMANDS[name]
    out = chats / "out"
    words = [*SMALL, *more, f"--data={chats / data}.jsonl", f"--out={out}"]
    code, _, err = call(command.main, *words)
    assert code == 2 and "--chat-template=FILE gives one" in err.splitlines()[-1]
    code, _, err = call(command.main, *words, f"--chat-template={chats / 'plain.jinja'}")
    assert code == 0, err
    assert load_tokenizer(out).chat_template == PLAIN
    # It decides what was trained on.
    code, _, err = call(command.main, *words, f"--chat-template={chats / 'other.jinja'}")
    assert code == 2 and "chat_template" in err.splitlines()[-1]
    ending = chats / "ending.jinja"
    ending.write_text(PLAIN.replace(" {% end", "{{ ending }} {% end"))
    there = [*words[:-1], f"--out={chats / 'told'}", f"--chat-template={ending}"]
    assert call(command.main, *there, TOLD)[0] == 0
    assert json.loads((chats / "told" / "manifest.json").read_text())["chat_template_kwargs"] == {
        "ending": " Orsa."
    }
    code, _, err = call(command.main, *there)
    assert code == 2 and "chat_template_kwargs" in err.splitlines()[-1]
    if name != "sft":
        return
    pair = [f"--reference={TOY / 'reference'}", f"--aligned={out}", f"--prompts={chats / 'prompts.jsonl'}"]
    run = [*pair, "--lambda=1", "--num-prompts=1", "--max-new-tokens=4", f"--out={chats / 'run'}"]
    assert call(sweep.main, *run)[0] == 0
    (row,) = read_rows(chats / "run")
    assert row["prompt"] == [{"role": "user", "content": "Mira visits Ida."}]
    assert call(sweep.main, *run[:-1], f"--out={chats / 'other'}", f"--chat-template={ending}", TOLD)[0] == 0
    read = load_tokenizer(out).decode(
        read_rows(chats / "other")[0]["prompt_tokens"], skip_special_tokens=True
    )
    assert read.split() == "Mira visits Ida. Orsa.".split()


def test_a_broken_chat_template_is_told_first(refused, tmp_path):
    (tmp_path / "broken.jinja").write_text("{% for")
    words = ["--model=gone", "--data=gone.jsonl", f"--out={tmp_path / 'out'}"]
    assert "the chat template is broken" in refused(
        sft.main, *words, f"--chat-template={tmp_path / 'broken.jinja'}"
    )
