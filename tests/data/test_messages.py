"""What data says to a chat template: contents in parts, tools, settings; against transformers' rendering."""

import json
from dataclasses import replace

import pytest

from dera_jax import load_policy
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.examples import encode_examples, encode_pairs
from dera_jax.data.prompts import Prompt, load_prompts
from dera_jax.data.records import Record
from dera_jax.policies.tokenizers import load_tokenizer
from dera_jax.rewards.completions import Completions

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}(no thoughts){% endif %}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
PARTS = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story"}]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def policy(toy):
    tokenizer = load_tokenizer(toy)
    tokenizer.chat_template = TEMPLATE
    return replace(load_policy(str(toy)), tokenizer=tokenizer)


def prompt_ids(policy, fields):
    (encoded,) = encode_prompts((policy,), [Prompt.of(fields)], 0)
    return list(encoded.tokens[0])


def theirs(policy, chat, **variables):
    return policy.tokenizer.apply_chat_template(chat, return_dict=False, **variables)


@pytest.mark.parametrize("field", ["messages", "prompt"])
def test_prompts_with_parts_tools_and_settings_are_transformers_rendering(policy, field):
    chat = [user(PARTS)]
    expected = theirs(policy, chat, add_generation_prompt=True)
    assert (
        prompt_ids(policy, {field: chat})
        == expected
        == prompt_ids(policy, {field: [user("Tell me a story")]})
    )
    quiet = {"enable_thinking": False}
    for tools in (TOOLS, json.dumps(TOOLS)):
        fields = {field: chat, "tools": tools, "chat_template_kwargs": quiet | {"other": None}}
        assert prompt_ids(policy, fields) == theirs(
            policy, chat, add_generation_prompt=True, tools=TOOLS, **quiet
        )
    assert prompt_ids(policy, {field: chat, "tools": None, "chat_template_kwargs": {}}) == expected


def test_prompt_only_chats_of_a_file(policy, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        json.dumps({"prompt": [user("Hi")], "chat_template_kwargs": {"enable_thinking": False}}) + "\n"
    )
    (prompt,) = load_prompts(str(path))
    assert prompt.messages == (user("Hi"),) and prompt.variables == {"enable_thinking": False}


def test_training_data_is_read_with_them_as_trl_reads_it(policy):
    trl = pytest.importorskip("trl")
    fields = {"prompt": [user("Hi")], "chosen": [assistant("Yes")], "rejected": [assistant("No")]}
    written = trl.apply_chat_template(dict(fields), policy.tokenizer, tools=TOOLS)
    row = fields | {"tools": TOOLS}
    parts = row | {
        "prompt": [user([{"type": "text", "text": "Hi"}])],
        "chosen": [assistant([PARTS[0] | {"text": "Yes"}])],
    }
    for each in (row, parts):
        for whole in (False, True):
            ((pair,), _) = encode_pairs(policy, [Record(each, "f:1", 0)], 10**6, whole=whole)
            ids = policy.tokenizer(written["prompt"] + written["chosen"], add_special_tokens=False).input_ids
            assert [*pair.prompt, *pair.chosen] == ids


def test_a_text_that_messages_answer_is_the_users(policy):
    chat = {"prompt": [user("Hi")], "completion": [assistant("Yes")]}
    (one,), _ = encode_examples(policy, [Record(chat, "f:1", 0)], 99)
    (other,), _ = encode_examples(policy, [Record(chat | {"prompt": "Hi"}, "f:1", 0)], 99)
    assert one == other


IMAGE = [{"type": "image", "url": "x"}]


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"messages": [user(IMAGE)]},
            r"messages\[0\]: content\[0\]: expected .*, found a part of type 'image'",
        ),
        ({"messages": [user(["Hi"])]}, r"messages\[0\]: content\[0\]: expected .*, found a string"),
        ({"messages": [user(None)]}, r"messages\[0\]: content: expected a string, found null"),
        ({"messages": [user("Hi")], "tools": "none"}, "tools: expected a list of objects, found a string"),
        ({"messages": [user("Hi")], "tools": [1]}, "tools: expected a list of objects, found a list"),
        (
            {"messages": [user("Hi")], "chat_template_kwargs": 3},
            "chat_template_kwargs: expected an object such as",
        ),
        (
            {"messages": [user("Hi")], "chat_template_kwargs": {"messages": []}},
            "chat_template_kwargs: expected settings of the template, found 'messages'",
        ),
    ],
)
def test_what_no_template_takes_is_named(policy, fields, message):
    with pytest.raises(ValueError, match=f"^f:1: {message}"):
        Prompt.of(fields, 0, "f:1")
    row = fields | {"messages": [*fields["messages"], assistant("b")]}
    with pytest.raises(ValueError, match=f"^f:1: {message}"):
        encode_examples(policy, [Record(row, "f:1", 0)], 99)


def test_columns_that_are_no_messages_settings_stay_columns():
    """Raw prompts have no template, whatever their columns are called."""
    prompt = Prompt.of({"prompt": "Once", "tools": "hammer"})
    assert prompt.columns == {"tools": "hammer"} and prompt.variables == {}
    assert Completions(["Once"], ["x"], None, ["eos"], str, prompt.columns | {"tools": ["hammer"]})
