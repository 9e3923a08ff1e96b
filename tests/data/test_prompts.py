"""Prompts with stable ids from files and lists; mistakes name file and line."""

import json

import pytest

from dera_jax.data.prompts import Prompt, as_prompts, load_prompts, read_prompts


def test_fields_of_jsonl(write):
    rows = [
        {"prompt": "Once", "id": "a", "lambda": 0.5, "prefix": " upon", "topic": ["x", 1]},
        {"turns": ["Hi", "Bye"], "lambda": [0, 1]},
        {"prompt": " ", "id": None, "messages": None},
    ]
    assert load_prompts(write("p.jsonl", "\n".join(map(json.dumps, rows)))) == [
        Prompt("a", "Once", None, 0.5, " upon", {"topic": ["x", 1]}),
        Prompt(1, None, tuple({"role": "user", "content": text} for text in ("Hi", "Bye")), (0.0, 1.0)),
        Prompt(2, " "),
    ]


def test_ids_are_line_numbers_even_after_blank_lines(write):
    spec = write("p.jsonl", '\ufeff{"prompt": "a\u2028b"}\r\n\n{"prompt": "c"}\n')
    assert [(p.prompt_id, p.text) for p in load_prompts(spec)] == [(0, "a\u2028b"), (2, "c")]
    spec = write("p.txt", "one\n\n  two \nthrée")
    assert [(p.prompt_id, p.text) for p in load_prompts(spec)] == [(0, "one"), (2, "  two "), (3, "thrée")]


def test_limit_takes_the_first_and_reads_no_further(write):
    spec = write("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\nbroken\n')
    assert [p.text for p in load_prompts(spec, limit=2)] == ["a", "b"]
    with pytest.raises(ValueError, match=r"^p\.jsonl:3: "):
        load_prompts(spec, limit=3)
    assert len(load_prompts("chat", limit=1000)) == 20
    with pytest.raises(ValueError, match="at least 1, found 0"):
        load_prompts(spec, limit=0)


def test_shipped_name_beats_a_file_of_that_name(write):
    write("chat", "not this")
    prompts = load_prompts("chat")
    assert len({p.prompt_id for p in prompts}) == 20
    for prompt in prompts:
        (message,) = prompt.messages
        assert message["role"] == "user"
        assert message["content"] == message["content"].strip() != ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"', r"^p\.jsonl:2: not valid JSON \("),
        ("\n[1]", r"^p\.jsonl:2: expected a JSON object, found a list$"),
        (
            '{"text": "a", "n": 1}',
            r"^p\.jsonl:1: expected one of .*'prompt', 'messages' and 'turns', found text, n$",
        ),
        ('{"prompt": "a", "messages": []}', r"^p\.jsonl:1: expected one of"),
        ('\n{"prompt": ""}', r"^p\.jsonl:2: prompt is empty$"),
        (
            '{"prompt": ""}\n{"turns": ["a", ""]}\n{"prompt": ""}',
            r"^no record can be used: 3 records dropped \(2 prompt is empty, the first p\.jsonl:1; "
            r"1 turns\[1\] is empty, the first p\.jsonl:2\)$",
        ),
        ('{"prompt": "a \\ud83d b"}', r"^p\.jsonl:1: half of a surrogate pair in it"),
        ('{"prompt": "a", "prefix": "\\udc80"}', r"^p\.jsonl:1: half of a surrogate pair in it"),
        ('{"prompt": "a", "id": "\\ud83d"}', r"^p\.jsonl:1: half of a surrogate pair in it"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', r"^p\.jsonl:1: half of a surrogate"),
        ('{"chosen": "a b", "rejected": "a b"}', r"^p\.jsonl:1: chosen equal to rejected$"),
        ('{"prompt": 3}', r"^p\.jsonl:1: prompt: expected a string, found a number$"),
        ('{"prompt": [{"role": "user"}]}', r"^p\.jsonl:1: prompt\[0\]: expected an object with 'role' and"),
        ('{"messages": []}', r"^p\.jsonl:1: messages is empty$"),
        ('{"messages": "Hi"}', r"^p\.jsonl:1: messages: expected a list, found a string$"),
        ('{"messages": [{"role": "user"}]}', r"^p\.jsonl:1: messages\[0\]: .*'content'$"),
        (
            '{"messages": [{"role": "user", "content": [1]}]}',
            r"^p\.jsonl:1: messages\[0\]: content\[0\]: expected .*, found a number$",
        ),
        ('{"prompt": "a", "id": 1.5}', r"^p\.jsonl:1: id: expected"),
        ('{"prompt": "a", "id": true}', r"^p\.jsonl:1: id: expected .* found true or false$"),
        ('{"prompt": "a", "prefix": 1}', r"^p\.jsonl:1: prefix: expected a string"),
        ('{"prompt": "a", "lambda": "0.5"}', r"^p\.jsonl:1: lambda: expected a finite number"),
        ('{"prompt": "a", "lambda": NaN}', r"^p\.jsonl:1: lambda: expected a finite number"),
        (
            '{"prompt": "a", "id": "x"}\n\n{"prompt": "b", "id": "x"}',
            r"^p\.jsonl:3: id 'x' is already taken by p\.jsonl:1$",
        ),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b"}', r"^p\.jsonl:2: id 1 is already taken by p\.jsonl:1$"),
        ("", r"^p\.jsonl: no prompts in it$"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}', r"^p\.jsonl:2: not UTF-8 text$"),
        ('{"prompt": "a"}'.encode("utf-16"), r"^p\.jsonl:1: not UTF-8 text$"),
        ('{"prompt": ' + "[" * 100_000, r"^p\.jsonl:1: not valid JSON \(nested too deeply\)$"),
        ('{"prompt": "a', r"^p\.jsonl:1: not valid JSON \(Unterminated string starting at column 12\)$"),
        ('{"id": ' + "9" * 5000, r"^p\.jsonl:1: not valid JSON \(a number has too many digits\)$"),
    ],
)
def test_mistakes_in_a_file_name_the_line(write, content, message):
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(write("p.jsonl", content))
    assert "\n" not in str(error.value)


def test_as_prompts():
    ready = Prompt("mine", "text")
    mapping = {"prompt": "b", "id": 7, "lambda": 1, "topic": "t"}
    assert as_prompts(["a", mapping, ready, {"prompt": "c"}]) == [
        Prompt(0, "a"),
        Prompt(7, "b", lambda_=1.0, columns={"topic": "t"}),
        ready,
        Prompt(3, "c"),
    ]
    for value, message in [
        ("a", "expected a list of prompts, found a string"),
        (["a", ""], "^prompt 1: prompt is empty"),
        (["a", 3], "^prompt 1: expected a string or an object"),
        (["a", {"prompt": "b", "id": 0}], "^prompt 1: id 0 is already taken by prompt 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_prompts(value)


# One of many that cannot be used


def test_records_that_cannot_be_used_are_left_out_and_counted(write):
    lines = [
        '{"prompt": "a"}',
        '{"prompt": ""}',
        '{"messages": []}',
        '{"prompt": "b"}',
        '{"prompt": "\\ud83d"}',
    ]
    prompts, dropped = read_prompts(write("p.jsonl", "\n".join(lines)))
    assert [(prompt.prompt_id, prompt.text) for prompt in prompts] == [(0, "a"), (3, "b")]
    assert dropped.told("p.jsonl", 2) == (
        "warning: p.jsonl: 2 used; 3 records dropped (1 prompt is empty, the first p.jsonl:2; 1 messages is "
        r"empty, the first p.jsonl:3; 1 half of a surrogate pair in it, such as \ud83d, the first p.jsonl:5)"
    )
    with pytest.warns(UserWarning, match="2 used; 3 records dropped"):
        assert load_prompts("p.jsonl") == prompts
    # Few of many are no warning.
    prompts, dropped = read_prompts(write("p.jsonl", '{"prompt": ""}\n' + '{"prompt": "a"}\n' * 9))
    assert dropped.told("p.jsonl", len(prompts)).startswith("p.jsonl: 9 used; 1 record dropped (")


def test_a_file_of_another_kind_stops_at_once(write):
    with pytest.raises(ValueError, match=r"^p\.jsonl:2: prompt: expected a string, found a number$"):
        load_prompts(write("p.jsonl", '{"prompt": ""}\n{"prompt": 3}\n{"prompt": "a"}'))


# Prompts of what other commands read


def test_prompts_of_pairs_and_of_trls_chats(write):
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    talk = "\n\nHuman: a\n\nAssistant:"
    chats = {"chosen": [user, answer], "rejected": [user, answer | {"content": "No"}]}
    rows = [
        {"prompt": "Hi", "chosen": " yes", "rejected": " no"},
        {"chosen": talk + " b", "rejected": talk + " c"},
        chats,
        {"prompt": [user], "topic": 1},
        {"prompt": [user], "chosen": [answer], "rejected": [answer | {"content": "No"}]},
        {"chosen": talk + " b", "rejected": talk + " b"},
    ]
    prompts, dropped = read_prompts(write("p.jsonl", "\n".join(map(json.dumps, rows))))
    assert [prompt.text or prompt.messages for prompt in prompts] == ["Hi", talk, *[(user,)] * 3]
    assert dropped.reasons == {"chosen equal to rejected": 1}
    assert prompts[1].columns == rows[1] and prompts[3].columns == {"topic": 1}
