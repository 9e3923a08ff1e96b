"""Records: the rows of a file, of a data set or of what is shipped, as they are."""

import csv
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from gzip import GzipFile
from io import BufferedIOBase, TextIOWrapper
from itertools import islice
from pathlib import Path

import numpy as np

from dera_jax.common.files import ASSETS, open_file
from dera_jax.common.folders import no_such_file
from dera_jax.common.json_files import why_no_json
from dera_jax.common.shown import shown

SHIPPED = {"toy": "toy/prompts.jsonl", "chat": "chat.jsonl"}
"""Names of the prompts that come with the package; a file of that name in the folder does not win."""
LONGEST_CELL = 2**28
"""Characters of a table's cell, at most; Python's own limit is shorter than a long document."""
FORMS = "FILE.jsonl, FILE.jsonl.gz, FILE.json, FILE.csv, FILE.parquet, FILE.txt, hf:org/set[:split], tfds:name[:split]"


@dataclass(frozen=True)
class Record:
    """One row of a data set, before anything is known about its fields."""

    fields: dict
    """Names to values as JSON has them."""
    where: str
    """File and line, counted from 1, for errors."""
    number: int
    """The line's number, counted from 0."""
    settings: Mapping = field(default_factory=dict)
    """What chat templates are told, unless the row says otherwise; see `messages.template_variables`."""


def load_records(spec: str, limit: int | None = None, settings: Mapping | None = None) -> list[Record]:
    """Returns the first `limit` rows of `spec` (see `prompts.load_prompts`), or all, whatever their fields.

    Rows after the first `limit` are not read; a compressed file is, to see whether it is whole.

    Args:
      settings: of `Record`.

    Raises:
      ValueError: no such data, an unknown form, nothing in it, or a broken line.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{spec}: expected a number of prompts of at least 1, found {limit}")
    records = list(islice(_rows(spec, limit), limit))
    if not records:
        raise ValueError(f"{shown(spec, 200)}: no prompts in it")
    if len(records) == limit and spec.lower().endswith(".gz"):
        _check_whole(spec)
    return [replace(record, settings=settings) for record in records] if settings else records


def _rows(spec: str, limit: int | None) -> Iterator[Record]:
    """Returns the reader of `spec`'s form."""
    scheme, _, name = spec.partition(":")
    if scheme in ("hf", "tfds"):
        name, _, split = name.partition(":")
        if not name:
            raise ValueError(f"{spec}: expected the name of a data set after {scheme}:")
        reader = _hf_rows if scheme == "hf" else _tfds_rows
        return reader(spec, name, split or "train", limit)
    if spec in SHIPPED:
        return _jsonl_rows(spec, ASSETS / SHIPPED[spec])
    if os.path.isdir(spec):
        raise ValueError(f"{shown(spec, 200)}: is a folder")
    opener = next((r for suffix, r in READERS.items() if spec.lower().endswith(suffix)), None)
    if opener is None:
        suffix = Path(spec).suffix
        what = f"unknown suffix {shown(suffix, 40)}" if suffix else "no file suffix, no shipped name"
        shipped = ", ".join(SHIPPED)
        raise ValueError(f"{shown(spec, 200)}: {what}; expected {FORMS}, or a shipped name ({shipped})")
    return opener(shown(spec, 200), Path(spec))


def _opened(spec: str, path: Path) -> BufferedIOBase:
    """Returns an ordinary file, open for reading."""
    # Not Path.is_file, which fails for names that are too long.
    if os.path.isdir(path):
        raise ValueError(f"{spec}: is a folder")
    if not os.path.exists(path):
        raise ValueError(f"{spec}: {no_such_file(path)}")
    return open_file(path)


def _unpacked(path: Path, file: BufferedIOBase) -> BufferedIOBase:
    return GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file


def _check_whole(spec: str) -> None:
    """Raises ValueError where a compressed file, of which the first lines were wanted, is torn behind them."""
    path = Path(spec)
    with _opened(spec, path) as file:
        try:
            packed = _unpacked(path, file)
            while packed.read(2**20):
                pass
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{spec}: cannot be read to its end ({_first_line(error)})") from error


def _lines(spec: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank, numbered from 0, without their ends."""
    number = -1
    with _opened(spec, path) as file:
        # Bytes that are no UTF-8 become characters that no UTF-8 gives, so that their line can be told.
        text = TextIOWrapper(_unpacked(path, file), "utf-8-sig", "surrogateescape")
        try:
            # Not str.splitlines, which also splits at U+2028; JSON strings may hold that.
            for number, line in enumerate(text):
                if _NO_UTF8.search(line):
                    raise ValueError(f"{spec}:{number + 1}: not UTF-8 text")
                if line.strip():
                    yield number, line.rstrip("\n")
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{spec}:{number + 2}: cannot be read ({_first_line(error)})") from error


_NO_UTF8 = re.compile("[\udc80-\udcff]")


def _jsonl_rows(spec: str, path: Path) -> Iterator[Record]:
    for number, line in _lines(spec, path):
        where = f"{spec}:{number + 1}"
        yield Record(_object(_decoded(line, where), where), where, number)


def _json_rows(spec: str, path: Path) -> Iterator[Record]:
    """Yields the objects of a JSON array; a file that begins otherwise has one on each line."""
    lines = _lines(spec, path)
    start, first = next(lines, (0, ""))
    if not first.lstrip().startswith("["):
        yield from _jsonl_rows(spec, path)
        return
    parts = ["\n" * start, first]
    for number, line in lines:
        parts += ["\n" * (number - start), line]  # Blank lines are put back, for the places of errors.
        start = number
    for number, value in enumerate(_decoded("".join(parts), spec)):
        where = f"{spec}[{number}]"
        yield Record(_object(value, where), where, number)


def _decoded(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({why_no_json(error)})") from error


def _object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, found {json_kind(value)}")
    return value


def _csv_rows(spec: str, path: Path) -> Iterator[Record]:
    """Yields the rows of a table whose first line has the fields' names."""
    csv.field_size_limit(LONGEST_CELL)
    with _opened(spec, path) as file:
        text = TextIOWrapper(file, "utf-8-sig", newline="")
        reader = csv.DictReader(text, strict=True)
        try:
            names = [name for name in reader.fieldnames or () if name]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{spec}:1: two columns are named {shown(twice, 40)!r}")
            for number, fields in enumerate(reader):
                where = f"{spec}:{reader.line_num}"
                if None in fields:
                    raise ValueError(f"{where}: expected {len(reader.fieldnames)} cells, found more")
                yield Record({name: cell or None for name, cell in fields.items()}, where, number)
        except UnicodeDecodeError:
            raise ValueError(f"{spec}:{reader.line_num + 1}: not UTF-8 text") from None
        except csv.Error as error:
            raise ValueError(f"{spec}:{reader.line_num + 1}: not a table ({error})") from None


def _text_rows(spec: str, path: Path) -> Iterator[Record]:
    for number, line in _lines(spec, path):
        yield Record({"prompt": line}, f"{spec}:{number + 1}", number)


def _parquet_rows(spec: str, path: Path) -> Iterator[Record]:
    with _opened(spec, path) as opened:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise ValueError(f"{spec}: reading parquet needs pyarrow: pip install pyarrow") from error
        try:
            with ParquetFile(opened) as file:
                rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
                yield from _numbered(spec, rows)
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{spec}: not a parquet file ({_first_line(error)})") from error


READERS: dict[str, Callable[[str, Path], Iterator[Record]]] = {
    ".jsonl": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
"""End of a file's name -> what reads it."""


def _hf_rows(spec: str, name: str, split: str, limit: int | None) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{spec}: needs the datasets package: pip install datasets") from error
    if int(datasets.__version__.partition(".")[0]) < 4:  # older ones run the scripts that come with data sets
        raise ValueError(f"{spec}: expected datasets 4 or newer, found {datasets.__version__}")
    # Streamed, the first rows of a large set come without the rest; a slice of a split cannot be.
    streaming = limit is not None and "[" not in split
    try:
        yield from _numbered(spec, datasets.load_dataset(name, split=split, streaming=streaming))
    except Exception as error:  # Of many libraries below: network, formats, a set's own configuration.
        raise ValueError(f"{spec}: {type(error).__name__}: {_first_line(error)}") from error


def _tfds_rows(spec: str, name: str, split: str, limit: int | None) -> Iterator[Record]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"{spec}: needs TensorFlow Datasets: pip install tensorflow-datasets") from error
    try:
        source = tfds.data_source(name, split=split)  # Random access, and no TensorFlow.
        yield from _numbered(spec, (source[i] for i in range(len(source))))
    except Exception as error:
        hint = "; some sets are found only with TensorFlow installed" if "not found" in str(error) else ""
        raise ValueError(f"{spec}: {type(error).__name__}: {_first_line(error)}{hint}") from error


def _numbered(spec: str, rows) -> Iterator[Record]:
    for number, fields in enumerate(rows):
        yield Record(_plain(dict(fields)), f"{spec}:{number + 1}", number)


def _plain(value):
    """Returns what JSON would hold: strings for bytes, numbers and lists for NumPy's."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _first_line(error: Exception) -> str:
    return shown((str(error).strip() or repr(error)).splitlines()[0], 200)


def json_kind(value: object) -> str:
    """Returns a value's kind in JSON's words."""
    if isinstance(value, str):
        return "an empty string" if not value else "a string"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
