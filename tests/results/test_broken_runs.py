"""Run folders with broken rows and manifests: one line from every command, nothing written."""

import gzip
import json
import lzma
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest

from dera_jax import load_policies, sweep
from dera_jax.commands import compare, plot, score, tune
from dera_jax.policies.policy import TOY
from dera_jax.results.manifests import read_manifest
from dera_jax.results.rows import WHOLE, parse_rows
from tests.support.processes import ROOT

TEXTS = [f"Mira has {n} apples" for n in range(16)]
HUGE = 10**400
COUNTS = [None, "0", -1, 1.5, [], True, HUGE]
FIGURES = [None, "x", [], {}, True, HUGE, -1e101]
BAD_ROWS = {
    "prompt_id": [None, [], {}, 1.5, True],
    "sample": COUNTS,
    "turn": COUNTS,
    "lambda": [None, "x", [], {}, [1, 2], [[1]], ["1"], True, HUGE],
    "seed": [None, "x", []],
    "rule": [None, 3],
    "beta": ["x", {}, [], [None], HUGE],
    "prompt": [None, 3, {}, ["x"], [{"role": "user"}], [{"role": 1, "content": "x"}]],
    "completion": [None, 3, []],
    "prompt_tokens": [None, "x", ["x"], [[["x"]]], [-1]],
    "tokens": [None, "x", 3, [None], [-1], [1.5], [2**40]],
    "length": COUNTS,
    "finish_reason": [None, "ended", 3],
    "rewards": [None, [], "x", {"a": "x"}, {"a": [1]}, {"a": HUGE}, {"a": True}, {"a": {}}],
    "aligned_logprob": ["x", [], ["x"], {}],
    "log_normalizer": ["x", [], {}, HUGE],
    **dict.fromkeys(("logprob", "reference_logprob", "sampling_logprob", "kl_to_reference"), FIGURES),
}
"""Values that a field of a row must not have."""

DEEP = b"[" * 100_000
DEEPER_THAN_IT_CAN_BE_WRITTEN = b"[" * 500 + b"]" * 500
BAD_LINES = {
    "NaN": b'{"prompt_id": 0, "sample": 0, "lambda": 1, "logprob": NaN}',
    "beyond": b'{"prompt_id": 0, "sample": 0, "lambda": 1, "logprob": 1e999}',
    "deep": DEEP,
    "deep field": b'{"prompt_id": 0, "sample": 0, "lambda": 1, "more": '
    + DEEPER_THAN_IT_CAN_BE_WRITTEN
    + b"}",
    "nul": b"\0" * 300,
    "list": b"[1]",
    "text": b'"\x1b[2J"',
    "latin": b'{"prompt_id": "\xe9"}',
}
BAD_FILES = {
    "NULs": lambda data: b"\0" * 8192,
    "carriage returns": lambda data: data.replace(b"\n", b"\r"),
    "NULs at the end": lambda data: data + b"\0" * 512,
    "no beginning of a row at the end": lambda data: data + b"garbage",
    "a whole object that is no row at the end": lambda data: data + b'{"a": 1}',
    "a list that begins at the end": lambda data: data + b"[1, 2",
    "a row twice": lambda data: data + data.split(b"\n")[0] + b"\n",
}

NOT_OBJECTS = [None, [], "x", 3, True]
BAD_MANIFESTS = {
    "": [*NOT_OBJECTS, "\x1b[2J"],
    "format": [None, "1", 2, "\x1b[2J", [], {"a": 1}],
    "identity": NOT_OBJECTS,
    "identity.models": [[], "x", 3],
    "identity.models.aligned": [3, {}, [3]],
    "identity.models.reference": [3, []],
    "identity.quantization": [3, "x", ["int8"], [3, 3], {}],
    "identity.decode": [[], "x"],
    "extent": NOT_OBJECTS,
    "extent.num_prompts": [-1, "x", None, HUGE, 1.5],
    "extent.num_samples": [-1, "x", None],
    "extent.lambda": ["0", [0], None, {}],
    "extent.rewards": ["x", [1]],
    "asked": ["x", {}, [3], [{}], [{"num_prompts": 1, "num_samples": 1, "lambda": "x", "ended": True}]],
    "provenance": NOT_OBJECTS,
    "provenance.command": ["x", [1], None],
    "provenance.models": [None, 3, "x", ["x"], [3], [{}], [{"name": 3}], {}],
    "commands": [None, "x", 3, [3], [None], [{"command": "x"}]],
    "judges": [[], "x", {"a": 1}],
    "resources": [[], "x", {"slot_utilization": "x"}],
    "decode_seconds": ["x", []],
}
"""Values that a field of a run's manifest must not have."""


@pytest.fixture(scope="module")
def policies():
    return load_policies(TOY / "reference", TOY / "aligned")


def swept(policies, out, rewards="length:1:9", **more):
    arguments = {"max_new_tokens": 4, "rows": 16, "num_samples": 1} | more
    return list(sweep(policies, TEXTS, [0.0, 1.0], rewards, out=out, **arguments))


@pytest.fixture(scope="module")
def whole(policies, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    swept(policies, out)
    return out


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def answers(run, policies, capsys):
    """What every command says of the folder: by its name, exit code and standard error."""
    commands = {
        "score": (score.main, [run, "--reward=keywords:a"]),
        "plot": (plot.main, [run, f"--out={run.parent / 'a.png'}"]),
        "table": (plot.main, [run, "--table=terminal"]),
        "tune": (tune.main, [run, "--objective=length:1:9", f"--plot={run.parent / 'b.png'}"]),
        "compare": (compare.main, [run, run, "--against=0", "--judge=keywords:a"]),
    }

    def answered():
        found = {}
        for name, (main, words) in commands.items():
            found[name] = main(list(map(str, words))), capsys.readouterr().err
        try:
            swept(policies, run, num_samples=2)
            found["sweep"] = 0, ""
        except ValueError as error:
            found["sweep"] = 2, f"error: {error}\n"
        return found

    return answered


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_refused(run, answers, *words):
    """All commands refuse the folder in one line with certain words in it, and change nothing."""
    before = contents(run)
    for name, (code, err) in answers().items():
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (name, code, err)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", err) and len(err) < 700, (name, err)
        assert all(word in err for word in words), (name, err)
        assert contents(run) == before, name
    assert not [path for path in run.parent.iterdir() if path.suffix == ".png"]


def cases(table):
    return [
        pytest.param(name, value, id=f"{name}-{json.dumps(value)[:20]}")
        for name, values in table.items()
        for value in values
    ]


@pytest.mark.parametrize(("name", "value"), cases(BAD_ROWS))
def test_a_row_with_a_bad_field_is_named_by_its_line(name, value, run, answers):
    lines = (run / "rows.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {name: value})
    (run / "rows.jsonl").write_text("\n".join(lines) + "\n")
    check_refused(run, answers, "rows.jsonl:3: broken row: ", name)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_is_no_row_is_named(name, run, answers):
    lines = (run / "rows.jsonl").read_bytes().splitlines()
    lines[2] = BAD_LINES[name]
    (run / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    check_refused(run, answers, "rows.jsonl:3: broken row: ")


@pytest.mark.parametrize("name", BAD_FILES)
def test_only_the_beginning_of_a_row_is_cut_off(name, run, answers):
    (run / "rows.jsonl").write_bytes(BAD_FILES[name]((run / "rows.jsonl").read_bytes()))
    check_refused(run, answers, "rows.jsonl:", "broken row: ")


@pytest.mark.parametrize("name", ["prompt_id", "lambda", "rewards", "length"])
def test_rows_of_single_processes_are_checked_before_they_are_taken_in(name, run, answers):
    row = json.loads((run / "rows.jsonl").read_text().splitlines()[0]) | {"sample": 5, name: "x", "turn": -1}
    (run / "rows-1.jsonl").write_text(json.dumps(row) + "\n")
    (run / "rows.jsonl").write_bytes((run / "rows.jsonl").read_bytes() + b'{"prompt_id": "to')
    check_refused(run, answers, "rows-1.jsonl:1: broken row: ")


@pytest.mark.parametrize("name", WHOLE)
def test_a_field_that_is_not_there_is_named_where_it_is_needed(name, run, answers):
    lines = (run / "rows.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    del row[name]
    lines[2] = json.dumps(row)
    (run / "rows.jsonl").write_text("\n".join(lines) + "\n")
    before = contents(run)
    found = answers()
    for command in ("sweep", "score", "plot", "table"):
        assert found[command][0] == 2 and f"rows.jsonl:3: broken row: no {name!r} in it" in found[command][1]
    for _, err in found.values():
        assert err.count("error: ") <= 1 and "Traceback" not in err
    assert contents(run) == before


@pytest.mark.parametrize(("name", "value"), cases(BAD_MANIFESTS))
def test_a_manifest_with_a_bad_field_is_named(name, value, run, answers):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    *outer, last = name.split(".")
    there = manifest
    for key in outer:
        there = there[key]
    there[last] = value
    path.write_text(json.dumps(value if name == "" else manifest))
    check_refused(run, answers, "manifest.json: ", last.replace("extent", ""))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, DEEP, DEEPER_THAN_IT_CAN_BE_WRITTEN, b"{", b'{"format": NaN}']
)
def test_a_manifest_that_is_no_json_is_named(content, run, answers):
    (run / "manifest.json").write_bytes(content)
    check_refused(run, answers, "manifest.json: not ")


def test_a_manifest_nested_deeper_than_it_can_be_written_is_refused(run, answers):
    manifest = json.loads((run / "manifest.json").read_text())
    told = json.dumps(manifest | {"more": "DEEP"}).replace('"DEEP"', DEEPER_THAN_IT_CAN_BE_WRITTEN.decode())
    (run / "manifest.json").write_text(told)
    check_refused(run, answers, "nested too deeply")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows-2.jsonl", "manifest.json"])
def test_pipes_and_devices_are_no_files_of_a_run(name, run, policies, capsys):
    (run / name).unlink(missing_ok=True)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(run / name)
        for main, words in ((plot.main, []), (tune.main, []), (score.main, ["--reward=keywords:a"])):
            assert main([str(run), *words]) == 2
            assert "expected a file, found a pipe or a device" in capsys.readouterr().err
        with pytest.raises(ValueError, match="expected a file, found a pipe or a device"):
            swept(policies, run)
        (run / name).unlink()


def test_the_same_folder_unbroken_is_fine(answers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {name: told for name, told in answers().items() if told[0]} == {}


@pytest.mark.parametrize(
    "end", ["{", '{"prompt_id"', '{"a": "\\ud800\\', '{"a": [1, -', '{"a": 1e-', '{"a": tru']
)
def test_the_beginning_of_a_row_is_cut_off(end, run, policies):
    before = (run / "rows.jsonl").read_bytes()
    (run / "rows.jsonl").write_bytes(before + end.encode())
    swept(policies, run)
    assert (run / "rows.jsonl").read_bytes() == before


def test_runs_that_are_kept_are_whole():
    """Whatever the schemas ask for, older folders have: the first rows of each, and all manifests."""
    found = sorted((ROOT / "results").rglob("manifest.json"))
    for path in found:
        read_manifest(path.parent)
        rows = next(path.parent.glob("rows.jsonl*"))
        with {".gz": gzip.open, ".xz": lzma.open, ".jsonl": open}[rows.suffix](rows, "rb") as file:
            start = b"".join(line for line, _ in zip(file, range(20), strict=False))
        assert parse_rows(start, rows, WHOLE)[1] == len(start)
    assert len(found) > 100
