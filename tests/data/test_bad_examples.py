"""Training data that cannot be used: dropped and counted, or named in one line."""

from dataclasses import replace

import pytest

from dera_jax.data.examples import encode_examples, encode_pairs
from dera_jax.data.fields import EMPTY, UNRELATED
from tests.support.training_records import assistant, record, user

# One of many

EMPTIES = {
    "texts": {"prompt": "A", "chosen": " b", "rejected": ""},
    "chats": {"prompt": [user("Hi")], "chosen": [assistant("b")], "rejected": [assistant("")]},
    "whole chats": {"chosen": [user("Hi"), assistant("b")], "rejected": [user("Hi"), assistant("")]},
    "transcripts": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
    "equal": {"prompt": "A", "chosen": " b", "rejected": " b"},
    "surrogate": {"prompt": "A", "chosen": " b", "rejected": " \ud83d"},
}


@pytest.mark.parametrize("fields", EMPTIES.values(), ids=EMPTIES.keys())
def test_a_pair_that_cannot_be_used_is_dropped_in_every_shape(chatting, fields):
    good = record(prompt="Once", chosen=" upon a time", rejected=" no")
    pairs, report = encode_pairs(chatting, [good, record(1, **fields)], 64)
    assert len(pairs) == 1 and report.dropped.count == 1
    assert report.told("f").startswith("warning: f: 1 used; 1 record dropped (1 ") and "f:2" in report.told(
        "f"
    )
    with pytest.raises(ValueError, match=r"^f:2: ") as error:
        encode_pairs(chatting, [record(1, **fields)], 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "a \udc80"},
        {"prompt": "a", "completion": ""},
        {"messages": [user("a"), assistant("")]},
        {"messages": [user("a"), assistant("b"), user("c")]},
        {"prompt": "and " * 99, "completion": "b"},
    ],
)
def test_an_example_that_cannot_be_used_is_dropped(chatting, fields):
    items, report = encode_examples(chatting, [record(text="One day"), record(1, **fields)], 64)
    assert len(items) == 1 and report.dropped.count == 1 and "the first f:2" in report.told("f")


# Bad records

CHAT = [user("a"), assistant("b")]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"question": "?"}, "expected text in `prompt` and `completion`, or in `text`, .*; found question"),
        ({"prompt": "a", "answer": "b"}, "expected text in .*; found prompt, answer"),
        ({"prompt": "a", "completion": None}, "expected text in .*; found prompt, completion \\(null\\)"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": "a", "completion": 3}, "completion: expected a string or a list of messages, found a nu"),
        ({"prompt": "a", "completion": CHAT}, "completion: expected a string as `prompt` is one, found a li"),
        ({"prompt": CHAT, "completion": "c"}, "prompt: expected messages that the assistant answers"),
        (
            {"prompt": CHAT[:1], "completion": CHAT},
            r"completion\[0\]: expected the assistant's, found the us",
        ),
        ({"text": ""}, "text is empty"),
        ({"messages": "Hi"}, "messages: expected a list of messages, found a string"),
        (
            {"messages": CHAT[:1]},
            "messages: expected several, the last one the assistant's, found user",
        ),
        ({"messages": []}, "messages: expected several, .*, found none"),
        ({"messages": [user("a"), assistant("")]}, "messages is empty"),
        ({"messages": [{"from": "human"}]}, r"messages\[0\]: expected an object with 'role' and 'content'"),
        (
            {"messages": [user("a"), assistant(None)]},
            r"messages\[1\]: content: expected a string, found null",
        ),
        ({"messages": CHAT}, "the prompt has `messages`, but the tokenizer has no chat template"),
    ],
)
def test_a_bad_example_is_named(policy, fields, message):
    with pytest.raises(ValueError, match=f"^f:1: {message}") as raised:
        encode_examples(policy, [record(**fields)], 64)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": None},
            r"expected .*; found prompt, chosen, rejected \(null\)",
        ),
        ({"prompt": "a", "chosen": "b"}, "expected `chosen` and `rejected`, .*; found prompt, chosen"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
        (
            {"prompt": "a", "chosen": "b", "rejected": CHAT},
            "rejected: expected a string as `chosen` is one, fo",
        ),
    ],
)
def test_a_bad_pair_is_named(policy, fields, message):
    with pytest.raises(ValueError, match=f"^f:1: {message}"):
        encode_pairs(policy, [record(**fields)], 64)


@pytest.mark.parametrize("label, found", [(None, "null"), ("yes", "a string"), (0.5, "0.5")])
def test_a_bad_label_is_named(policy, label, found):
    fields = {"prompt": "a", "completion": "b", "label": label}
    with pytest.raises(ValueError, match=f"^f:1: label: expected true or false, found {found}"):
        encode_examples(policy, [record(**fields)], 64, labelled=True)
    assert encode_examples(policy, [record(**fields)], 64)[1].used == 1


def test_a_word_that_the_model_does_not_have_is_refused(policy):
    small = replace(policy, config=replace(policy.config, vocab_size=400))
    with pytest.raises(ValueError, match=r"f:1: token 4.* is beyond the 400 words"):
        encode_examples(small, [record(prompt="Once", completion=" upon a time")], 64)


def test_chats_that_share_no_question_are_dropped(chatting):
    good = record(chosen=[user("a"), assistant("b")], rejected=[user("a"), assistant("c")])
    strange = record(chosen=[user("a"), assistant("b")], rejected=[user("c"), assistant("d")])
    blank = record(chosen=[user("a"), assistant("b")], rejected=[user("a"), assistant("")])
    pairs, report = encode_pairs(chatting, [good, strange, blank], 64)
    assert len(pairs) == 1 and report.dropped.reasons == {UNRELATED: 1, EMPTY: 1}
