"""Data from its sources and from mirrors: checked, whole, once; the model of llama2.c's files; who may read it."""

import hashlib
import json
import struct
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from safetensors.numpy import load_file

from dera_jax import generate, load_policy
from scripts import data_sets, get_data, llama2c
from scripts.data_sets import KNOWN, SETS, DataSet, File

pytest_plugins = ["pytester"]
TEXTS = {"a.txt": b"one\n", "b.txt": b"two\n" * 1000}


def file(name, content, *places):
    return File(name, len(content), hashlib.sha256(content).hexdigest(), places)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DERA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A host of repositories, at served/REPOSITORY/REVISION/PATH, and the requests that it had."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    served = tmp_path / "served"
    served.mkdir()
    host = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=served))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{host.server_port}/{{repository}}/{{revision}}/{{path}}"
    monkeypatch.setattr(data_sets, "HOSTS", dict.fromkeys(data_sets.HOSTS, address))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served, asked
    host.shutdown()
    host.server_close()


@pytest.fixture
def known(monkeypatch):
    """One set of two files, of which the first is at the second place that is named."""
    files = (
        file("a.txt", TEXTS["a.txt"], "github:x/y@12/a.txt", "github-lfs:x/z@12/a.txt"),
        file("b.txt", TEXTS["b.txt"], "hf:x/z@12/deep/b.txt"),
    )
    data = DataSet("letters", "two letters", "none", files)
    monkeypatch.setattr(get_data, "SETS", (data,))
    monkeypatch.setattr(get_data, "KNOWN", {"letters": data})


def serve(served, **files):
    for path, content in files.items():
        place = served / path.replace("__", "/").replace("_txt", ".txt")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_missing_is_fetched_and_nothing_else(folder, server, known, capsys):
    served, asked = server
    serve(served, x__z__12__a_txt=TEXTS["a.txt"], x__z__12__deep__b_txt=TEXTS["b.txt"])
    assert get_data.main([]) == 0
    whole = {f"letters/{name}": content for name, content in TEXTS.items()}
    assert contents(folder) == whole
    asked.clear()
    assert get_data.main(["letters"]) == 0 and not asked
    (folder / "letters/b.txt").write_bytes(b"torn")
    (folder / "letters/a.txt").unlink()
    assert get_data.main([]) == 0 and contents(folder) == whole
    assert capsys.readouterr().err.count("error") == 0


def test_a_file_of_another_content_is_none(folder, server, known, capsys):
    """As long, longer without end, or absent: one line, and nothing of it is kept."""
    served, _ = server
    serve(served, x__z__12__a_txt=TEXTS["a.txt"])
    for wrong in (b"owt\n" * 1000, TEXTS["b.txt"] * 100, None):
        if wrong:
            serve(served, x__z__12__deep__b_txt=wrong)
        else:
            (served / "x/z/12/deep/b.txt").unlink()
        assert get_data.main([]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(error) == 1 and "letters: b.txt: http://127.0.0.1" in error[0]
        assert ("404" if wrong is None else "checksum") in error[0]
        assert contents(folder) == {"letters/a.txt": TEXTS["a.txt"]}


@pytest.mark.parametrize("place", ["letters", "data/letters", "models/letters"])
def test_mirrors(place, folder, known, tmp_path, capsys):
    mirror = tmp_path / "mirror" / place
    mirror.mkdir(parents=True)
    (mirror / "a.txt").write_bytes(TEXTS["a.txt"])
    assert get_data.main([f"--from={tmp_path / 'mirror'}"]) == 2
    assert "no b.txt in " in capsys.readouterr().err
    assert get_data.main(["--list"]) == 0
    assert "lacks b.txt" in capsys.readouterr().out
    (mirror / "b.txt").write_bytes(TEXTS["b.txt"])
    assert get_data.main([f"--from={tmp_path / 'mirror'}"]) == 0
    assert contents(folder) == {f"letters/{name}": content for name, content in TEXTS.items()}
    assert get_data.main(["letter"]) == 2
    assert "unknown data 'letter'; known: letters" in capsys.readouterr().err


def test_every_file_has_a_source():
    for data in SETS:
        for each in (*data.files, *data.sources):
            assert len(each.sha256) == 64 and int(each.sha256, 16) and each.size > 0
            assert all(url.startswith("https://") for url in each.urls())
            assert each.urls() or data.make
        assert data.licence and len({each.name for each in data.files}) == len(data.files)


# Models of llama2.c


def interleaved(weights, size):
    """Rows of a head as llama2.c has them: the two of each rotary pair side by side."""
    heads = weights.reshape(-1, size, weights.shape[1])
    order = [row for n in range(size // 2) for row in (n, n + size // 2)]
    return heads[:, order].reshape(weights.shape)


def llama2c_files(policy, words):
    """Returns a model as llama2.c's export writes it, version 0."""
    config = policy.config
    sizes = (config.width, config.mlp_width, config.num_layers, config.num_heads, config.num_kv_heads,
             config.vocab_size, config.max_positions)  # fmt: skip
    tensors = load_file(policy.folder / "model.safetensors")
    parts = [tensors["model.embed_tokens.weight"]]
    for block in llama2c.BLOCKS:
        for layer in range(config.num_layers):
            weights = tensors[f"model.layers.{layer}.{block}.weight"]
            rotary = block.endswith(("q_proj", "k_proj"))
            parts.append(interleaved(weights, config.head_dim) if rotary else weights)
    angles = np.zeros((2, config.max_positions, config.head_dim // 2))
    model = b"".join(
        np.asarray(part, "<f4").tobytes() for part in [*parts, tensors["model.norm.weight"], angles]
    )
    spelled = [word.replace("▁", " ").encode() for word in words]
    vocabulary = b"".join(struct.pack("<fi", -float(n), len(w)) + w for n, w in enumerate(spelled))
    return struct.pack("<7i", *sizes) + model, struct.pack("<i", max(map(len, spelled))) + vocabulary


def test_a_model_of_llama2c_is_the_same_model(toy, tmp_path):
    """There and back: greedy text, and a tokenizer that merges in the order of its words."""
    policy = load_policy(str(toy))
    policy = replace(policy, config=replace(policy.config, norm_epsilon=1e-5))
    letters = [*"▁abcdefghijklmnopqrstuvwxyzT."]
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "th",
        "the",
        "▁the",
        "▁c",
        "at",
        *letters,
    ]
    words += [f"word{n}" for n in range(512 - len(words))]
    for name, content in llama2c.convert(*llama2c_files(policy, words)).items():
        (tmp_path / name).write_bytes(content)
    again = load_policy(str(tmp_path))
    assert again.config == policy.config
    prompt = list(range(3, 20))
    ours, theirs = (
        generate((replace(p, tokenizer=again.tokenizer, eos_ids=()),), [again.tokenizer.decode(prompt)], (),
                 temperature=0.0, max_new_tokens=12)[0].tokens
        for p in (policy, again)
    )  # fmt: skip
    assert ours == theirs
    ids = [1, *map(words.index, ["▁the", "▁c", "at", "."])]
    assert again.tokenizer("the cat.").input_ids == ids
    assert again.tokenizer.decode(ids, skip_special_tokens=True) == "the cat."
    assert again.tokenizer("é").input_ids[-2:] == [3 + 0xC3, 3 + 0xA9]


@pytest.mark.data("stories260K")
def test_the_files_of_stories260k_are_made_as_published(data):
    """By the inverse of the conversion, and back."""
    policy = load_policy(str(data / "stories260K"))
    vocab = json.loads((data / "stories260K/tokenizer.json").read_text())["model"]["vocab"]
    words = [
        {1: "\n<s>\n", 2: "\n</s>\n"}.get(n, word) for n, word in enumerate(sorted(vocab, key=vocab.get))
    ]
    model, vocabulary = llama2c_files(policy, words)
    assert [len(model), len(vocabulary)] == [source.size for source in KNOWN["stories260K"].sources]
    made = llama2c.convert(model, vocabulary)
    for each in KNOWN["stories260K"].files:
        if each.name in made:
            assert hashlib.sha256(made[each.name]).hexdigest() == each.sha256, each.name


# Who may read it


MARKED = """
import os, pytest
from pathlib import Path

@pytest.mark.data("e2e", "vader")
def test_marked(data):
    assert (data / "e2e").is_dir()

def test_unmarked():
    from dera_jax.common.folders import data_folder
    assert not data_folder().exists()

@pytest.mark.skipif(SKIP, reason="another")
def test_other():
    pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs a suite with these files beside the plugin, and returns its exit code and its lines."""
    monkeypatch.delenv("DERA_DATA", raising=False)
    monkeypatch.delenv("DERA_JAX_TEST_DATA", raising=False)

    def run(text, *words, data):
        monkeypatch.setenv("DERA_JAX_TEST_DATA", str(data))
        monkeypatch.setenv("DERA_DATA", "/dev/null/x")
        pytester.makepyfile(text)
        found = pytester.runpytest("-p", "tests.support.outside_data", "-q", *words)
        return found.ret, found.outlines + found.errlines

    return run


def test_lacking_data_is_told_once_and_other_skips_are_faults(run, tmp_path):
    text = MARKED.replace("SKIP", "False")
    code, lines = run(text, "--may-skip=data", data=tmp_path)
    assert code == 0 and "1 tests need data: python scripts/get_data.py e2e vader" in lines
    assert run(text, "--may-skip=none", data=tmp_path)[0] == 1
    code, lines = run(MARKED.replace("SKIP", "True"), "--may-skip=data", data=tmp_path)
    assert code == 1 and "skipped: 1 that need data, 1 others" in lines
    assert run(MARKED.replace("SKIP", "True"), data=tmp_path)[0] == 0


def test_marked_tests_find_it(run, tmp_path):
    for name in ("e2e", "vader"):
        for each in KNOWN[name].files:
            (tmp_path / name).mkdir(exist_ok=True)
            with open(tmp_path / name / each.name, "wb") as sparse:
                sparse.truncate(each.size)
    code, lines = run(MARKED.replace("SKIP", "False"), "--may-skip=none", data=tmp_path)
    assert code == 0 and not any("tests need data" in line for line in lines)


def test_the_fixture_is_for_marked_tests_only(run, tmp_path):
    for text in ("def test_it(data): pass", "import pytest\n@pytest.mark.data('e2e')\ndef test_it(): pass"):
        code, lines = run(text, data=tmp_path)
        assert code == 4 and any("go together" in line for line in lines)
