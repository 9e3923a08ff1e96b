"""Halves of characters, as JSON and arguments of another encoding hold them, are told in one line by every command."""

import json

import pytest

from dera_jax.commands import dpo, generate, reward, rlhf, score, sft, sweep
from dera_jax.data.tokens import text_ids
from dera_jax.policies.policy import TOY
from dera_jax.policies.tokenizers import load_tokenizer

HALF = "a cat \ud83d and"
PAIR = [f"--reference={TOY / 'reference'}", f"--aligned={TOY / 'aligned'}"]
MODEL = f"--model={TOY / 'aligned'}"
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
CHAT = {"role": "user", "content": HALF}


def command(main, option, *words):
    """Returns the call of a command on a file of records."""
    return lambda folder, file: main([*words, f"--{option}={file}", f"--out={folder / 'out'}"])


SWEEP = command(sweep.main, "prompts", *PAIR, "--max-new-tokens=4")
CHATS = lambda folder, file: sweep.main(  # noqa: E731
    [*PAIR, f"--prompts={file}", f"--out={folder / 'out'}", f"--chat-template={folder / 't.jinja'}"]
)
TRAIN = (MODEL, "--max-steps=1", "--batch-size=2")
SCORED = command(score.main, "pairs", *PAIR)
COMMANDS = {
    "prompt": (SWEEP, {"prompt": HALF}),
    "prefix": (SWEEP, {"prompt": "a", "prefix": HALF}),
    "id": (SWEEP, {"prompt": "a", "id": HALF}),
    "chat": (CHATS, {"messages": [CHAT]}),
    "sft": (command(sft.main, "data", *TRAIN), {"prompt": "a", "completion": HALF}),
    "sft, text": (command(sft.main, "data", *TRAIN), {"text": HALF}),
    "dpo": (command(dpo.main, "data", *TRAIN), {"prompt": "a", "chosen": HALF, "rejected": "b"}),
    "dpo, prompt": (command(dpo.main, "data", *TRAIN), {"prompt": HALF, "chosen": "c", "rejected": "b"}),
    "reward": (command(reward.main, "data", *TRAIN), {"prompt": "a", "chosen": "b", "rejected": HALF}),
    "rlhf": (command(rlhf.main, "data", *TRAIN, "--reward=length:1:2", "--num-samples=2"), {"prompt": HALF}),
    "pairs": (SCORED, {"prompt": "a", "chosen": HALF, "rejected": "b"}),
}


@pytest.mark.parametrize(("run", "record"), COMMANDS.values(), ids=COMMANDS)
def test_records(run, record, tmp_path, capsys):
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    (tmp_path / "data.jsonl").write_text(json.dumps(record) + "\n")
    assert run(tmp_path, tmp_path / "data.jsonl") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "half of a surrogate pair in it" in line and "\\ud83d" in line
    line.encode()
    assert "data.jsonl:1" in line or "prompt 0: " in line
    assert not (tmp_path / "out" / "rows.jsonl").exists()


@pytest.mark.parametrize("word", ["caf\udce9", HALF])
def test_arguments(word, capsys):
    assert generate.main([*PAIR, f"--prompt={word}", "--max-new-tokens=2"]) == 2
    assert "half of a surrogate pair in it" in capsys.readouterr().err.splitlines()[-1]


def test_whole_characters_are_read():
    tokenizer = load_tokenizer(TOY / "aligned")
    for text in ("", "é", "🎉", "\x00", "\ufeff", "\uffff", "\U0010ffff", "\u202e"):
        assert text_ids(tokenizer, text) == tokenizer(text).input_ids
