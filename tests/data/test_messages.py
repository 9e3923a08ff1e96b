"""What data says to a chat template: contents in parts, tools, settings; against transformers' rendering."""

import json
from dataclasses import replace

import pytest

from dera_jax import load_policy
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.examples import encode_examples, encode_pairs
from dera_jax.data.learned import encode_learned
from dera_jax.data.prompts import Prompt, load_prompts, read_prompts
from dera_jax.data.records import Record, load_records
from dera_jax.policies.tokenizers import load_tokenizer
from dera_jax.rewards.completions import Completions
from dera_jax.scoring.pairs import encode_pairs as encode_scored
from dera_jax.scoring.pairs import load_pairs

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


def test_settings_of_all_records_are_those_of_each(policy, tmp_path):
    """What is given for all is told where a record does not say otherwise, in prompts, training data and pairs."""
    template = "{% if enable_thinking is defined and not enable_thinking %}/quiet {% endif %}" + TEMPLATE
    policy = replace(policy, template=template)
    quiet, loud = {"enable_thinking": False}, {"enable_thinking": True}
    asked = {"prompt": [user("Hi")]}
    path = tmp_path / "p.jsonl"
    lines = [asked, asked | {"chat_template_kwargs": loud | {"other": None}}, {"prompt": "Once"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts, _ = read_prompts(str(path), settings=quiet)
    assert [p.columns for p in prompts] == [
        {"chat_template_kwargs": quiet}, {"chat_template_kwargs": loud}, {},
    ]  # fmt: skip
    found = [list(encoded.tokens[0]) for encoded in encode_prompts((policy,), prompts[:2], 0)]
    assert found == [
        theirs(policy, [user("Hi")], add_generation_prompt=True, chat_template=template, **each)
        for each in (quiet, loud)
    ]
    answered = asked | {"chosen": [assistant("Yes")], "rejected": [assistant("No")]}
    path.write_text(
        "".join(json.dumps(answered | {"chat_template_kwargs": each}) + "\n" for each in ({}, loud))
    )
    with_them, own = load_records(str(path), settings=quiet), load_records(str(path))
    own[0].fields["chat_template_kwargs"] = quiet
    assert (
        encode_pairs(policy, with_them, 99)
        == encode_pairs(policy, own, 99)
        != encode_pairs(policy, own[1:] * 2, 99)
    )
    pairs = [load_pairs(str(path), settings=quiet)[0], load_pairs(str(path))[0]]
    read = [encode_scored((policy,), each)[0] for each in pairs]
    assert [each.prompts for each in read[0]] == [(pair.prompt,) for pair in encode_pairs(policy, own, 99)[0]]
    assert read[0][1].prompts == read[1][1].prompts and read[0] != read[1]


def test_every_answer_is_learned_of_a_chat_with_settings(policy):
    """With tools and settings as without: all that a template writes is read, and the answers learned."""
    told = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": True}}
    chat = {"messages": [user("Hi"), assistant("Yes"), user("Why?"), assistant("So.")]}
    (one,), _ = encode_learned(policy, [Record(chat | told, "f:1", 0)], 10**6, assistant_only=True)
    ids = theirs(policy, chat["messages"], tools=TOOLS, enable_thinking=True)
    assert [*one.prompt, *one.completion] == ids
    learned = [i for i, is_learned in zip(one.completion, one.learned, strict=True) if is_learned]
    assert policy.tokenizer.decode(learned, skip_special_tokens=True) == "YesSo."


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
