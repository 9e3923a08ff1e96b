"""Records: the rows of a file, of a data set or of what is shipped, as they are."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from dera_jax.folders import no_such_file

ASSETS = Path(__file__).parent / "assets"
SHIPPED = {"toy": "toy/prompts.jsonl", "chat": "chat.jsonl"}
"""Names of the prompts that come with the package; a file of that name in the folder does not win."""

FORMS = "FILE.jsonl, FILE.jsonl.gz, FILE.parquet, FILE.txt, hf:org/set[:split], tfds:name[:split]"


@dataclass(frozen=True)
class Record:
    """One row of a data set, before anything is known about its fields."""

    fields: dict
    """Names to values as JSON has them."""
    where: str
    """File and line, counted from 1, for errors."""
    number: int
    """The line's number, counted from 0."""


def load_records(spec: str, limit: int | None = None) -> list[Record]:
    """Returns the first `limit` rows of `spec` (see `prompts.load_prompts`), or all, whatever their fields.

    Rows after the first `limit` are not read.

    Raises:
      ValueError: no such data, an unknown form, nothing in it, or a broken line.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{spec}: expected a number of prompts of at least 1, found {limit}")
    records = list(islice(_rows(spec, limit), limit))
    if not records:
        raise ValueError(f"{spec}: no prompts in it")
    return records


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
    readers = {".jsonl": _jsonl_rows, ".jsonl.gz": _jsonl_rows, ".parquet": _parquet_rows, ".txt": _text_rows}
    reader = next((r for suffix, r in readers.items() if spec.lower().endswith(suffix)), None)
    if reader is None:
        what = (
            f"unknown suffix {Path(spec).suffix}" if Path(spec).suffix else "no file suffix, no shipped name"
        )
        raise ValueError(f"{spec}: {what}; expected {FORMS}, or a shipped name ({', '.join(SHIPPED)})")
    return reader(spec, Path(spec))


def _lines(spec: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank, numbered from 0, without their ends."""
    if not path.is_file():
        raise ValueError(f"{spec}: {'is a folder' if path.is_dir() else no_such_file(path)}")
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            # Not str.splitlines, which also splits at U+2028; JSON strings may hold that.
            for number, line in enumerate(file):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{spec}: not UTF-8 text ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{spec}: cannot be read ({error})") from error


def _jsonl_rows(spec: str, path: Path) -> Iterator[Record]:
    for number, line in _lines(spec, path):
        where = f"{spec}:{number + 1}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: expected a JSON object, found {json_kind(fields)}")
        yield Record(fields, where, number)


def _text_rows(spec: str, path: Path) -> Iterator[Record]:
    for number, line in _lines(spec, path):
        yield Record({"prompt": line}, f"{spec}:{number + 1}", number)


def _parquet_rows(spec: str, path: Path) -> Iterator[Record]:
    if not path.is_file():
        raise ValueError(f"{spec}: {'is a folder' if path.is_dir() else no_such_file(path)}")
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{spec}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            yield from _numbered(spec, rows)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{spec}: not a parquet file ({_first_line(error)})") from error


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
    return (str(error).strip() or repr(error)).splitlines()[0]


def json_kind(value: object) -> str:
    """Returns a value's kind in JSON's words."""
    if isinstance(value, str):
        return "an empty string" if not value else "a string"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
