"""Prompts from every form of file, with stable ids, and mistakes that name file and line."""

import gzip
import json
import os
import random
import sys
import textwrap
from functools import partial

import pytest

from dera_jax.data.prompts import Prompt, as_prompts, load_prompts, read_prompts
from dera_jax.data.records import load_records


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file in the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return name

    return write


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


@pytest.mark.data("hh_rlhf", "tinystories")
def test_public_data_sets_are_read(data):
    records = load_records(str(data / "hh_rlhf/harmless-base.test.jsonl.gz"))
    assert len(records) == 2312
    assert records[0].fields.keys() == {"chosen", "rejected"}
    assert records[-1].where.endswith("harmless-base.test.jsonl.gz:2312")
    stories = load_prompts(str(data / "tinystories/tiny_stories_head.txt"), limit=5)
    assert stories[0].text.startswith("One day, a little girl named Lily")
    assert [p.prompt_id for p in stories] == [0, 2, 4, 5, 7]


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.jsonl", r"^none\.jsonl: no such file$"),
        ("none.parquet", r"^none\.parquet: no such file$"),
        ("folder.txt", r"^folder\.txt: is a folder$"),
        ("../", r"^\.\./: is a folder$"),
        ("p.xls", r"^p\.xls: unknown suffix \.xls; expected FILE\.jsonl.*\(toy, chat\)$"),
        ("pipe.jsonl", "pipe.jsonl: expected a file, found a pipe or a device"),
        ("pipe.parquet", "pipe.parquet: expected a file, found a pipe or a device"),
        ("device.jsonl", "device.jsonl: expected a file, found a pipe or a device"),
        ("a" * 5000 + ".jsonl", "^a+…a+.jsonl: no such file$"),
        ("a\0\x1b.txt", r"^a\\x00\\x1b\.txt: no such file$"),
        ("toys", r"^toys: .* shipped name \(toy, chat\)$"),
        ("hf:", "name of a data set"),
        ("tfds:", "name of a data set"),
        ("torn.jsonl.gz", r"^torn\.jsonl\.gz:\d+: cannot be read \(Compressed file ended before"),
        ("torn.parquet", "not a parquet file"),
    ],
)
def test_mistakes_in_the_name(write, tmp_path, spec, message):
    if spec.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / "folder.txt").mkdir()
    for name in ("pipe.jsonl", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    write("torn.parquet", "PAR1 and no more")
    write("full.gz", '{"prompt": "a"}\n' * 100)
    (tmp_path / "torn.jsonl.gz").write_bytes((tmp_path / "full.gz").read_bytes()[:30])
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(spec)
    assert "\n" not in str(error.value)


def test_parquet(write, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [
        {"messages": [{"role": "user", "content": f"ask {i}"}], "id": i * 2, "extra": None if i else "x"}
        for i in range(3000)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    write("p.txt", "")
    prompts = load_prompts("p.parquet", limit=2500)
    assert len(prompts) == 2500
    assert prompts[1] == Prompt(2, None, ({"role": "user", "content": "ask 1"},), columns={"extra": None})


@pytest.mark.parametrize(
    ("module", "spec"),
    [("pyarrow.parquet", "p.parquet"), ("datasets", "hf:org/set"), ("tensorflow_datasets", "tfds:set")],
)
def test_a_missing_package_is_named(write, monkeypatch, module, spec):
    monkeypatch.setitem(sys.modules, module, None)
    write("p.parquet", "PAR1")
    with pytest.raises(ValueError, match="pip install"):
        load_prompts(spec)


def test_hugging_face_set(write, tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    write("set/train.jsonl", '{"prompt": "a", "id": null}\n{"prompt": "b", "topic": [1]}\n')
    write("set/test.jsonl", '{"prompt": "c"}\n')
    for limit in (None, 5):
        assert load_prompts("hf:set", limit) == [
            Prompt(0, "a", columns={"topic": None}),
            Prompt(1, "b", columns={"topic": [1]}),
        ]
        assert load_prompts("hf:set:test", limit)[0].text == "c"
        with pytest.raises(ValueError, match=r"^hf:set:none: ") as error:
            load_prompts("hf:set:none", limit)
        assert "\n" not in str(error.value)
    assert [p.text for p in load_prompts("hf:set:train[1:]", 5)] == ["b"]


TINY_SET = '''
    """A set of three prompts."""
    import numpy as np
    import tensorflow_datasets as tfds


    class TinySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            fields = {"prompt": tfds.features.Text(), "n": tfds.features.Sequence(np.int32)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(fields))

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {"prompt": f"été {i}", "n": [i, i]}
'''


def test_tensorflow_datasets_set(write, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    (tmp_path / "tiny_set").mkdir()
    write("tiny_set/__init__.py", "")
    write("tiny_set/tiny_set.py", textwrap.dedent(TINY_SET))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("tiny_set.tiny_set")
    tfds.builder("tiny_set", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setattr(tfds, "data_source", partial(tfds.data_source, data_dir=tmp_path))
    prompts = load_prompts("tfds:tiny_set:test", limit=2)
    assert [p.text[:-1] for p in prompts] == ["été ", "été "]
    number = int(prompts[0].text[-1])
    assert prompts[0].columns == {"n": [number, number]}
    assert type(prompts[0].columns["n"][0]) is int
    with pytest.raises(ValueError, match=r"^tfds:tiny_set: .*train") as error:
        load_prompts("tfds:tiny_set")
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


def test_a_torn_file_is_refused_though_its_first_lines_are_whole(write, tmp_path):
    draw = random.Random(0)
    lines = "".join(json.dumps({"prompt": str(draw.random())}) + "\n" for _ in range(5000))
    whole = (tmp_path / write("p.jsonl.gz", lines)).read_bytes()
    for end in (len(whole) // 2, len(whole) - 4):
        (tmp_path / "p.jsonl.gz").write_bytes(whole[:end])
        for limit in (2, None):
            with pytest.raises(ValueError, match=r"^p\.jsonl\.gz(:\d+)?: cannot be read") as error:
                load_prompts("p.jsonl.gz", limit)
            assert "\n" not in str(error.value)


# Other forms


def test_json_arrays(write):
    rows = [{"prompt": "a\u2028b"}, {"prompt": "c", "id": "x", "n": [1]}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))):
        assert load_prompts(write("p.json", text)) == [
            Prompt(0, "a\u2028b"),
            Prompt("x", "c", columns={"n": [1]}),
        ]
    for text, message in [
        ('[{"prompt": "a"},\n\n {"prompt" "b"}]', r"^p\.json: not valid JSON \(.* at line 3, column 12\)$"),
        ('[{"prompt": "a"}, 5]', r"^p\.json\[1\]: expected a JSON object, found a number$"),
        ('[{"prompt": "a"}, {"prompt": 5}]', r"^p\.json\[1\]: prompt: expected a string, found a number$"),
        ("[]", r"^p\.json: no prompts in it$"),
        ("[" * 100_000, r"^p\.json: not valid JSON"),
        ("5", r"^p\.json:1: expected a JSON object, found a number$"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_prompts(write("p.json", text))


def test_tables(write):
    text = '\ufeffprompt,topic,id\r\n"Say ""no"",\nplease",x,\r\nHi,,7\r\n'
    assert load_prompts(write("p.csv", text)) == [
        Prompt(0, 'Say "no",\nplease', columns={"topic": "x"}),
        Prompt("7", "Hi", columns={"topic": None}),
    ]
    assert load_prompts(write("p.csv", f"prompt\n{'a' * 200_000}\n"))[0].text == "a" * 200_000
    for text, message in [
        ("prompt,n\na,1\nb,1,2\n", r"^p\.csv:3: expected 2 cells, found more$"),
        ('prompt\n"a\nb', r"^p\.csv:\d: not a table"),
        (b"prompt\n\xff\n", r"^p\.csv:\d: not UTF-8 text$"),
        ("prompt,,n,n\na,,1,2\n", r"^p\.csv:1: two columns are named 'n'$"),
        ("goal,target\na,b\n", r"^p\.csv:2: expected one of .* found goal, target$"),
        ("prompt\n", r"^p\.csv: no prompts in it$"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_prompts(write("p.csv", text))


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
