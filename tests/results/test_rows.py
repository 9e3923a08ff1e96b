"""Files of rows: read back as they were written, or named where they are broken."""

import gzip
import json
import lzma
import random

import pytest

from dera_jax.results.asked import tell_missing
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.results.rows import row_key, sort_rows
from tests.support.row_folders import folder, row


def test_rows_come_back_as_they_were(tmp_path):
    rows = [
        row(0, 0, [0.5, 1.0], completion="λ \u2028 \x85 \n\r\t \0 \ud800 😀", logprob=-1.2345678901234567),
        row("zwölf", 3, [0.5, -1.0], rewards={"python:a:b": None}),
    ]
    with folder(tmp_path / "a" / "run") as run:
        assert run.rows == [] and run.keys == set()
        run.append(rows)
        assert run.rows == rows
        assert run.keys == {(0, 0, "0.5+1", 0), ("zwölf", 3, "0.5+-1", 0)}
    assert read_rows(tmp_path / "a" / "run") == read_rows(tmp_path / "a" / "run" / "rows.jsonl") == rows
    with folder(tmp_path / "a" / "run") as run:
        assert run.rows == rows and run.keys == set(map(row_key, rows))


@pytest.mark.parametrize(
    "ending, compress, tool", [("gz", gzip.compress, "gunzip"), ("xz", lzma.compress, "unxz")]
)
def test_compressed_rows_are_read_and_not_written_beside(tmp_path, ending, compress, tool):
    with folder(tmp_path) as run:
        run.append([row()])
    path, packed = tmp_path / "rows.jsonl", tmp_path / f"rows.jsonl.{ending}"
    packed.write_bytes(compress(path.read_bytes()))
    path.unlink()
    assert read_rows(tmp_path) == [row()]
    with pytest.raises(ValueError, match=rf"{tool} .*rows\.jsonl\.{ending}"), folder(tmp_path):
        pass
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"cannot read .*rows\.jsonl\.{ending}: \w+"):
        read_rows(tmp_path)


def test_what_is_missing_is_told(tmp_path):
    whole = [row(prompt_id=p, **{"lambda": s}) for p in range(3) for s in (0.0, 0.5)]
    assert tell_missing(tmp_path, whole) is None
    told = tell_missing(tmp_path, whole[:-1])
    assert told == "1 completion is missing, the first at λ = 0.5: prompt 2, sample 0"
    turns = [*whole, row(prompt_id=0, **{"lambda": 0.0}, turn=1)]  # that of λ = 0.5 did not fit
    assert tell_missing(tmp_path, turns) is None
    own = [row(prompt_id=p, **{"lambda": float(p)}) for p in range(4)]  # each prompt its own strength
    assert tell_missing(tmp_path, own) is None
    with folder(tmp_path) as run:
        run.append(whole)
    assert "has not ended: 6 completions" in tell_missing(tmp_path, whole)


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_torn_last_line_is_ignored_then_repaired(tmp_path, lost):
    rows = [row(i, completion="täglich ✓") for i in range(3)]
    with folder(tmp_path) as run:
        run.append(rows)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    kept = rows if lost == 1 else rows[:2]  # One byte less is the end of the line: the row is whole.
    assert read_rows(path) == kept
    with folder(tmp_path) as run:
        assert run.rows == kept
        run.append([row(9)])
    assert read_rows(path) == [*kept, row(9)]
    assert path.read_bytes().count(b"\n") == len(kept) + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting .* at column 2$"),
        ("", "Expecting value at column 1$"),
        ("[1]", "expected an object, found list"),
        ('{"prompt": "hello"}', "no 'prompt_id' in it"),
        ('{"prompt_id": 0, "sample": 0, "lambda": "x"}', "expected a finite number"),
        ('{"prompt_id": 0, "sample": 0, "lambda": 1, "logprob": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_broken_line_elsewhere_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n" + line + "\n" + json.dumps(row(1)) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: broken row: .*{message}"):
        read_rows(tmp_path)


def test_absent_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no run in .*: expected rows\.jsonl"):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere: No such file or directory"):
        read_rows(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"cannot read .*manifest\.json"):
        read_manifest(tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with folder(tmp_path) as run:
        with pytest.raises(ValueError, match=r"row \(4, 0, '0\.5', 0\) holds a number that is not finite"):
            run.append([row(3), row(4, logprob=float("nan"))])
        assert run.rows == []
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_replaced_rows_are_the_ones_added_to(tmp_path):
    with folder(tmp_path) as run:
        run.append([row(0), row(1)])
        run.replace_rows([row(i, rewards={"new": 1.0}) for i in range(2)])
        run.append([row(2)])
        assert [r["prompt_id"] for r in run.rows] == [0, 1, 2]
    assert read_rows(tmp_path) == [row(0, rewards={"new": 1.0}), row(1, rewards={"new": 1.0}), row(2)]


def test_rows_have_one_order(tmp_path):
    rows = [
        row(prompt_id, sample, lambda_, turn=turn)
        for prompt_id in (2, 10, "10", "a")
        for sample in (0, 1)
        for lambda_ in (-1, 0.5, 2, 10)
        for turn in (0, 1)
    ]
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    assert sort_rows(shuffled) == rows
