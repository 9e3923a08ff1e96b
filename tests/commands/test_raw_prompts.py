"""Raw text past a chat template: said in one line, by the commands that decode."""

import json

import pytest

from dera_jax.commands import generate, sweep

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
NOTE = "raw text, without the aligned model's chat template: "


@pytest.fixture
def template(tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    return f"--chat-template={tmp_path / 't.jinja'}"


@pytest.mark.parametrize(
    ("fields", "has_template", "told"),
    [
        ({"prompt": "Hi"}, True, True),
        ({"messages": [{"role": "user", "content": "Hi"}]}, True, False),
        ({"prompt": "Hi"}, False, False),
    ],
)
def test_a_sweep_tells_of_raw_prompts_of_a_chat_model(call, template, tmp_path, fields, has_template, told):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps(fields) + "\n" + json.dumps(fields))
    words = ["--lambda=1", "--max-new-tokens=1", "--dry-run", *[template] * has_template]
    code, _, err = call(sweep.main, f"--prompts={prompts}", *words)
    assert code == 0
    assert (f"note: 2 prompts are {NOTE}write `messages` instead of `prompt`" in err) == told


def test_generate_tells_of_raw_text_without_chat(call, template):
    for words, told in ([], True), (["--chat"], False):
        code, _, err = call(
            generate.main, "--prompt=Hi", "--lambda=1", "--max-new-tokens=1", template, *words
        )
        assert code == 0 and (f"note: 1 prompt is {NOTE}add --chat" in err) == told
