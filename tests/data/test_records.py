"""Records from every form of file and from data sets by name; mistakes name the file."""

import json
import os
import random
import sys
import textwrap
from functools import partial

import pytest

from dera_jax.data.prompts import Prompt, load_prompts
from dera_jax.data.records import load_records


@pytest.mark.data("hh_rlhf", "tinystories")
def test_public_data_sets_are_read(data):
    records = load_records(str(data / "hh_rlhf/harmless-base.test.jsonl.gz"))
    assert len(records) == 2312
    assert records[0].fields.keys() == {"chosen", "rejected"}
    assert records[-1].where.endswith("harmless-base.test.jsonl.gz:2312")
    stories = load_prompts(str(data / "tinystories/tiny_stories_head.txt"), limit=5)
    assert stories[0].text.startswith("One day, a little girl named Lily")
    assert [p.prompt_id for p in stories] == [0, 2, 4, 5, 7]


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
