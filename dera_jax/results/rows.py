"""A row: what it holds, what tells rows apart, lines to rows and back."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, NotRequired, Required, TypedDict

import msgspec

from dera_jax.common.json_files import check_nesting, check_type, decode_json, encode_json
from dera_jax.common.shown import shown
from dera_jax.strengths import format_strength, strength_from_json


def sort_rows(rows: list[dict]) -> list[dict]:
    """Returns the rows by (prompt_id, sample, λ), then turn; numbers come before strings."""

    def order(row):
        prompt_id = row["prompt_id"]
        strength = strength_from_json(row["lambda"])
        return isinstance(prompt_id, str), prompt_id, row["sample"], strength, row.get("turn", 0)

    return sorted(rows, key=order)


KEY_FIELDS = ("prompt_id", "sample", "lambda")
"""What a file of rows must have to be one."""
LARGEST = 1e100
"""Of a row's numbers, so that sums of any number of them are numbers."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Numbers = Number | Annotated[list[Number], msgspec.Meta(min_length=1)]
Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Message(TypedDict):
    """What one side of a chat says."""

    role: str
    content: str


class Candidate(TypedDict):
    """What a decision of a search looked at."""

    text: str
    tokens: Count
    score: Number
    parent: Count | None
    kept: bool
    ended: bool


class Search(TypedDict):
    """What a completion was chosen from."""

    candidates: Count
    tokens: Count
    passes: NotRequired[Count]
    score: Number
    runner_up: Number | None
    trace: NotRequired[list[list[Candidate]]]


class Exact(TypedDict, total=False):
    """How a completion of the response-level optimum was found: by tries, in a population, or at the end of a chain."""

    tries: Count
    accepted: bool
    tokens: Required[Count]
    cut: Required[Count]
    log_weight: Number | None
    steps: Count
    moves: Count
    particles: Count
    effective: Number
    resamplings: Count
    ancestors: Count


Row = TypedDict(
    "Row",
    {
        "prompt_id": Required[int | str],
        "sample": Required[Count],
        "lambda": Required[Numbers],
        "seed": int,
        "turn": Count,
        "rule": str,
        "draw": str,
        "beta": Numbers | None,
        "prompt": str | list[Message],
        "contrast": str | list[Message],
        "completion": str,
        "prompt_tokens": list[Token | list[Token]],
        "tokens": list[Token],
        "length": Count,
        "finish_reason": Literal["eos", "stop", "length"],
        "rewards": dict[str, Number | None],
        "logprob": Number,
        "reference_logprob": Number,
        "aligned_logprob": Numbers | None,
        "sampling_logprob": Number,
        "kl_to_reference": Number,
        "log_normalizer": Number | None,
        "search": Search,
        "exact": Exact,
    },
    total=False,
)
"""Types of a row's fields, see `results.folder`; what else there is may be anything."""
OPTIONAL = ("seed", "turn", "rule", "draw", "contrast", "prompt_tokens", "tokens", "search", "exact")
"""Fields that kept rows may lack."""
WHOLE = tuple(name for name in Row.__annotations__ if name not in OPTIONAL)
"""Fields that summaries and figures are made of."""
RowKey = tuple[int | str, int, str, int]


def row_key(row: dict) -> RowKey:
    """Returns what tells a row from the others of its run: (prompt_id, sample, text of λ, turn)."""
    strength = format_strength(strength_from_json(row["lambda"]))
    return row["prompt_id"], row["sample"], strength, row.get("turn", 0)


def parse_rows(data: bytes, path: Path, needed: Collection[str] = KEY_FIELDS) -> tuple[list[dict], int]:
    """Returns the rows in `data`, and how many of its bytes they take: less than all if the last is torn.

    Args:
      path: where the data is from, for errors.
      needed: fields that no row may lack.

    Raises:
      ValueError: a line is no row, or the row of a line before; names its number.
    """
    rows, end, lines_of = [], 0, {}
    # Not `splitlines`, which also splits at U+2028 and others inside a string.
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            row = _checked(_decoded(line), needed)
            _check_new(row, rows, number, lines_of)
        except ValueError as error:
            if last and is_torn(line):
                break
            told = "it has NUL bytes" if b"\0" in line else error
            raise ValueError(f"{shown(path, 200)}:{number}: broken row: {told}") from None
        rows.append(row)
        end += len(line) + (not last)
    return rows, end


def _decoded(line: bytes):
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        # Half of a surrogate pair, or no JSON: this one says why.
        return decode_json(line)
    check_nesting(line, value)
    return value


def _checked(row, needed: Collection[str]) -> dict:
    try:
        check_type(row, Row)
    except ValueError:
        if not isinstance(row, dict):
            raise ValueError(f"expected an object, found {type(row).__name__}") from None
        _refuse_lacking(row, KEY_FIELDS)
        strength_from_json(row["lambda"])
        raise
    _refuse_lacking(row, needed)
    return row


def _refuse_lacking(row: dict, needed: Collection[str]) -> None:
    for name in needed:
        if name not in row:
            raise ValueError(f"no {name!r} in it")


def _check_new(row: dict, rows: list[dict], number: int, lines_of: dict) -> None:
    """Raises ValueError where a row is one of those before, or its λ is of another number of models."""
    strength = _as_tuple(row["lambda"])
    if rows and len(strength) != (expected := len(_as_tuple(rows[0]["lambda"]))):
        raise ValueError(f"at lambda: expected {expected} numbers as in the first row, found {len(strength)}")
    key = row["prompt_id"], row["sample"], strength, row.get("turn", 0)
    if (first := lines_of.setdefault(key, number)) != number:
        raise ValueError(f"the same prompt, sample and strength as in line {first}; remove one of the two")


def _as_tuple(strength: float | list[float]) -> tuple[float, ...]:
    return tuple(strength) if isinstance(strength, list) else (strength,)


SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of a JSON object, as a writer that is killed leaves it."""
    # A number may be torn where it is none yet, such as `1e-`; half of a surrogate pair is nothing to msgspec.
    start = SURROGATE.sub(rb"\\u0041", line.rstrip(b"+-.eE0123456789"))
    if not start.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(start)
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    except RecursionError:
        return False
    return False


def encode_rows(rows: list[dict]) -> bytes:
    """Returns the lines of rows.

    Raises:
      ValueError: one holds a number that is not finite.
    """
    lines = []
    for row in rows:
        try:
            lines.append(encode_json(row) + b"\n")
        except ValueError:
            raise ValueError(f"row {row_key(row)} holds a number that is not finite") from None
    return b"".join(lines)
