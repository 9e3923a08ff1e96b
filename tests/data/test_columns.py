"""Data in the columns of other tools: TRL's reading of ShareGPT, and the same chats in the usual columns."""

import csv
import json
from copy import deepcopy

import pytest

from dera_jax.commands import dpo, sft
from dera_jax.data.columns import usual
from dera_jax.data.fields import Row, has_pair, read_pair, read_row
from dera_jax.data.prompts import Prompt, read_prompts
from dera_jax.data.records import Record, load_records
from dera_jax.policies.policy import TOY

SAID = [("human", "Hi"), ("gpt", "Hello."), ("human", "Why?"), ("gpt", "So.")]
SHARE = [{"from": who, "value": text} for who, text in SAID]
CHAT = [{"role": {"human": "user", "gpt": "assistant"}[who], "content": text} for who, text in SAID]
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def record(**fields):
    return Record(fields, "f:1", 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": SHARE},
        {"messages": SHARE},
        {"prompt": SHARE[:3], "completion": SHARE[3:]},
        {"prompt": SHARE[:1], "chosen": SHARE[1:2], "rejected": SHARE[3:]},
    ],
)
def test_sharegpt_is_read_as_trl_converts_it(fields):
    trl = pytest.importorskip("trl.data_utils")
    theirs = trl.maybe_convert_to_chatml(deepcopy(fields))
    roles = {"human": "user", "gpt": "assistant"}
    theirs = {
        name: [message | {"role": roles.get(message["role"], message["role"])} for message in chat]
        for name, chat in theirs.items()
    }
    assert usual(fields, "f:1") == theirs
    read = read_pair if "chosen" in fields else read_row
    assert read(record(**fields)) == read(record(**theirs))


ROWS = [
    ({"conversations": SHARE}, {"messages": CHAT}),
    ({"conversations": SHARE, "system": "Be brief."}, {"messages": [SYSTEM, *CHAT]}),
    ({"conversations": CHAT}, {"messages": CHAT}),
    (
        {"instruction": "Add.", "input": "1 + 2", "output": "3"},
        {"prompt": [user("Add.\n\n1 + 2")], "completion": [assistant("3")]},
    ),
    (
        {
            "instruction": "Add.",
            "input": "",
            "output": "3",
            "system": "Be brief.",
            "history": [["Hi", "Hello."]],
        },
        {"prompt": [SYSTEM, *CHAT[:2], user("Add.")], "completion": [assistant("3")]},
    ),
]
PAIRS = [
    (
        {"conversations": SHARE[:3], "chosen": SHARE[3], "rejected": {"from": "gpt", "value": "No."}},
        {"prompt": CHAT[:3], "chosen": [CHAT[3]], "rejected": [assistant("No.")]},
    ),
    (
        {"prompt": user("Hi"), "chosen": assistant("a"), "rejected": assistant("b")},
        {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    ),
    (
        {"instruction": "Add.", "input": None, "chosen": "3", "rejected": "4"},
        {"prompt": [user("Add.")], "chosen": [assistant("3")], "rejected": [assistant("4")]},
    ),
    (
        {"question": "Why?", "response_j": "So.", "response_k": "No."},
        {"prompt": [user("Why?")], "chosen": [assistant("So.")], "rejected": [assistant("No.")]},
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), ROWS)
def test_rows_are_those_of_the_usual_columns(theirs, ours):
    assert read_row(record(**theirs)) == read_row(record(**ours))
    # Nulls are what tables fill fields with.
    assert read_row(record(**theirs, prompt=None, text=None)) == read_row(record(**ours))


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_pairs_are_those_of_the_usual_columns(theirs, ours):
    assert has_pair(record(**theirs)) and read_pair(record(**theirs)) == read_pair(record(**ours))


def test_what_has_the_usual_columns_is_left_as_it_is():
    fields = {"prompt": "Once", "instruction": "x", "conversations": SHARE, "output": "y"}
    assert usual(fields, "f:1") == fields | {"conversations": CHAT}
    assert read_row(record(text="Once", instruction="x")) == Row(None, ("Once",))


def test_prompts_end_with_what_is_asked():
    assert Prompt.of({"conversations": SHARE}).messages == tuple(CHAT[:3])
    assert Prompt.of({"conversations": SHARE[:3], "topic": "x"}).columns == {"topic": "x"}
    alpaca = Prompt.of({"instruction": "Add.", "input": "1 + 2", "output": "3"})
    assert alpaca.messages == (user("Add.\n\n1 + 2"),) and alpaca.columns == {"completion": "3"}
    assert Prompt.of(PAIRS[0][0]).messages == tuple(CHAT[:3])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"instruction": 3, "output": "x"}, "f:1: instruction: expected a string, found a int"),
        ({"instruction": "x", "input": ["y"], "output": "x"}, "f:1: input: expected a string, found a list"),
        ({"instruction": "x", "history": [["a"]], "output": "x"}, "f:1: history: expected a list of pairs"),
        ({"conversations": "x"}, "f:1: messages: expected a list of messages, found a string"),
        ({"conversations": [{"from": 3, "value": "x"}]}, "role: expected a string, found a number"),
        ({"conversations": [{"from": "human", "value": None}]}, "content: expected a string, found null"),
        ({"conversations": [{"from": "human"}]}, "expected an object with 'role' and 'content'"),
        ({"conversations": SHARE[:1]}, "messages do not end with an answer"),
    ],
)
def test_what_is_of_another_kind_is_told_with_its_place(fields, said):
    with pytest.raises(ValueError) as caught:
        read_row(record(**fields))
    assert said in f"{caught.value} {getattr(caught.value, 'reason', '')}"


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return path
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_tables_and_arrays_are_read_alike(suffix, tmp_path):
    rows = [{"instruction": f"Add {n}.", "input": "", "output": str(n)} for n in range(3)]
    path = write(tmp_path / f"rows{suffix}", rows)
    assert [read_row(each) for each in load_records(str(path))] == [read_row(record(**row)) for row in rows]
    prompts, _ = read_prompts(str(path))
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["Add 0.", "Add 1.", "Add 2."]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "suffix"), [(sft, ".csv"), (dpo, ".json")])
def test_the_commands_train_on_them(command, suffix, call, tmp_path):
    answers = {"chosen": "3", "rejected": "4"} if command is dpo else {"output": "3"}
    path = write(tmp_path / f"data{suffix}", [{"instruction": f"Add {n}.", **answers} for n in range(4)])
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    words = [f"--model={TOY / 'reference'}", f"--data={path}", f"--out={tmp_path / 'out'}", "--max-steps=1"]
    code, _, err = call(command.main, *words, "--batch-size=4", "--lora-r=2", f"--chat-template={template}")
    assert code == 0 and "4 used; 0 records dropped" in err, err
