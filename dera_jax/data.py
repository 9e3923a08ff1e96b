"""Prompts: a file, a data set's name or a shipped name, to `Prompt`s with a stable id each."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from dera_jax.strengths import turn_strengths

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


@dataclass(frozen=True)
class Prompt:
    """What is asked of the policies: exactly one of `text` and `messages`."""

    prompt_id: int | str
    """Names the prompt in rows and seeds its draws."""
    text: str | None = None
    """Raw text, given to the tokenizer as it is."""
    messages: tuple[dict, ...] | None = None
    """Turns with `role` and `content`, for the chat template."""
    lambda_: float | tuple[float, ...] | None = None
    """The prompt's own strength, or one per turn."""
    prefix: str = ""
    """Start of the answer, which the policies continue."""
    columns: dict = field(default_factory=dict)
    """Every other field, handed to rewards."""

    @classmethod
    def of(cls, value: object, number: int = 0, where: str | None = None) -> "Prompt":
        """Returns the prompt that a text, a record's fields or a prompt stand for.

        Args:
          value: a string is raw text.
          number: the id of a prompt without `id`.
          where: file and line, for errors.

        Raises:
          ValueError: a field is missing, empty or of the wrong kind.

        >>> Prompt.of({"prompt": "Once", "topic": "tales"}, number=3)
        Prompt(prompt_id=3, text='Once', messages=None, lambda_=None, prefix='', columns={'topic': 'tales'})
        """
        where = where or f"prompt {number}"
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a string or an object with fields, found {_kind(value)}")
        # Tables fill the fields a row does not have with null.
        columns = dict(value)
        known = {name: columns.pop(name, None) for name in ("id", "prompt", "messages", "lambda", "prefix")}
        if (known["prompt"] is None) == (known["messages"] is None):
            found = ", ".join(map(str, value)) or "none"
            raise ValueError(f"{where}: expected one of the fields 'prompt' and 'messages', found {found}")
        return cls(
            prompt_id=number if known["id"] is None else _id(known["id"], where),
            text=None if known["prompt"] is None else _text(known["prompt"], "prompt", where),
            messages=None if known["messages"] is None else _messages(known["messages"], where),
            lambda_=None if known["lambda"] is None else _lambda(known["lambda"], where),
            prefix="" if known["prefix"] in (None, "") else _text(known["prefix"], "prefix", where),
            columns=columns,
        )


def load_prompts(spec: str, limit: int | None = None) -> list[Prompt]:
    """Returns the first `limit` prompts of `spec`, or all; there may be fewer.

    Args:
      spec: `FILE.jsonl` (or `.jsonl.gz`, `.parquet`, `.txt`), `hf:org/set[:split]`,
        `tfds:name[:split]`, or a shipped name, `toy` or `chat`.
      limit: ≥ 1; None is all.

    Raises:
      ValueError: no such data, a broken line, or two prompts with one id.
    """
    records = load_records(spec, limit)
    prompts = [Prompt.of(r.fields, r.number, r.where) for r in records]
    _refuse_duplicates(prompts, [r.where for r in records])
    return prompts


def as_prompts(prompts: object) -> list[Prompt]:
    """Returns prompts from a list of texts, objects with fields, or prompts; without `id`, the id is the position.

    Raises:
      ValueError: `prompts` is one string, or a prompt is broken, or two have one id.
    """
    if isinstance(prompts, (str, Mapping, Prompt)):
        raise ValueError(f"prompts: expected a list of prompts, found {_kind(prompts)}")
    prompts = [Prompt.of(value, number) for number, value in enumerate(prompts)]
    _refuse_duplicates(prompts, [f"prompt {number}" for number in range(len(prompts))])
    return prompts


def _refuse_duplicates(prompts: list[Prompt], where: list[str]) -> None:
    first: dict[int | str, str] = {}
    for prompt, place in zip(prompts, where, strict=True):
        if prompt.prompt_id in first:
            raise ValueError(
                f"{place}: id {prompt.prompt_id!r} is already taken by {first[prompt.prompt_id]}"
            )
        first[prompt.prompt_id] = place


def _id(value: object, where: str) -> int | str:
    if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "":
        return value
    raise ValueError(f"{where}: id: expected a whole number or a string, found {_kind(value)}")


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        hint = "; a chat goes in the field 'messages'" if name == "prompt" and isinstance(value, list) else ""
        raise ValueError(f"{where}: {name}: expected a string, found {_kind(value)}{hint}")
    if not value:
        raise ValueError(f"{where}: {name} is empty")
    return value


def _messages(value: object, where: str) -> tuple[dict, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: messages: expected a list, found {_kind(value)}")
    if not value:
        raise ValueError(f"{where}: messages is empty")
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: messages[{i}]: expected an object with 'role' and 'content'")
        for name in ("role", "content"):
            if not isinstance(message[name], str):
                found = _kind(message[name])
                raise ValueError(f"{where}: messages[{i}]: {name}: expected a string, found {found}")
    return tuple(dict(message) for message in value)


def _lambda(value: object, where: str) -> float | tuple[float, ...]:
    turns = tuple(strength[0] for strength in turn_strengths(value, where))
    return turns if isinstance(value, (list, tuple)) else turns[0]


def _kind(value: object) -> str:
    """Returns a value's kind in JSON's words."""
    if isinstance(value, str):
        return "an empty string" if not value else "a string"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def load_records(spec: str, limit: int | None = None) -> list[Record]:
    """Returns the first `limit` rows of `spec` (see `load_prompts`), or all, whatever their fields.

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
        raise ValueError(f"{spec}: {'is a folder' if path.is_dir() else 'no such file'}")
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
            raise ValueError(f"{where}: expected a JSON object, found {_kind(fields)}")
        yield Record(fields, where, number)


def _text_rows(spec: str, path: Path) -> Iterator[Record]:
    for number, line in _lines(spec, path):
        yield Record({"prompt": line}, f"{spec}:{number + 1}", number)


def _parquet_rows(spec: str, path: Path) -> Iterator[Record]:
    if not path.is_file():
        raise ValueError(f"{spec}: {'is a folder' if path.is_dir() else 'no such file'}")
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
