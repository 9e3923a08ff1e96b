"""Kept completions, read once more: their normalizers at strengths they were not drawn at."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from dera_jax.common.json_files import check_type, read_json, write_json
from dera_jax.common.shown import shown
from dera_jax.data.buckets import bucket_length
from dera_jax.policies.policy import Policy
from dera_jax.results.rows import Number
from dera_jax.scoring.score import score_tokens
from dera_jax.strengths import strength_from_json


@dataclass(frozen=True)
class Normalizers:
    """Of rows, at strengths."""

    strengths: tuple[float, ...]
    log_normalizers: Float[np.ndarray, "rows strengths"]
    """Σₜ log zₜ"""
    kl: Float[np.ndarray, "rows strengths"]
    """Σₜ KL(mixture ‖ reference) of the next token, in nats."""

    def by_strength(self) -> tuple[dict[float, np.ndarray], dict[float, np.ndarray]]:
        """Returns the columns of both."""
        return tuple(
            dict(zip(self.strengths, each.T, strict=True)) for each in (self.log_normalizers, self.kl)
        )


def to_read(rows: Sequence[dict], strengths: Sequence[float]) -> list[int]:
    """Returns the numbers of the rows that do not tell their normalizers at all strengths themselves."""
    return [n for n, row in enumerate(rows) if {*strengths} - {_own(row)}]


def as_told(rows: Sequence[dict], strengths: Sequence[float]) -> Normalizers:
    """Returns what rows tell themselves: the column of the strength that each was drawn at."""
    found = Normalizers(tuple(strengths), *np.full((2, len(rows), len(strengths)), np.nan))
    for n, row in enumerate(rows):
        if _own(row) in strengths:
            column = strengths.index(_own(row))
            found.log_normalizers[n, column] = row["log_normalizer"]
            found.kl[n, column] = row["kl_to_reference"]
    return found


def _own(row: dict) -> float:
    return strength_from_json(row["lambda"])[0]


def read_again(
    policies: Sequence[Policy], rows: Sequence[dict], strengths: Sequence[float], batch_rows: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the number of a row with its Σ log z and its KL at each strength.

    Rows whose completions are about as long are read together, in one shape for each doubling of the length.

    Raises:
      ValueError: logits that are not finite.
    """
    order = sorted(range(len(rows)), key=lambda n: (len(rows[n]["tokens"]), n))
    for _, group in groupby(order, lambda n: bucket_length(len(rows[n]["tokens"]))):
        numbers = list(group)
        prompts = [_each_models(rows[n]["prompt_tokens"], len(policies)) for n in numbers]
        tokens = [rows[n]["tokens"] for n in numbers]
        found = score_tokens(policies, prompts, tokens, [(s,) for s in strengths], batch_rows, alike=True)
        for number, scored in zip(numbers, found, strict=True):
            of_tokens = scored.log_normalizers, scored.kl_to_reference
            yield number, *(each.sum(axis=1, dtype=np.float64) for each in of_tokens)


def _each_models(tokens: Sequence, models: int) -> list[list[int]]:
    """Returns a row's prompt as each model reads it."""
    return list(tokens) if tokens and isinstance(tokens[0], list) else [list(tokens)] * models


def _keys(rows: Sequence[dict]) -> list[str]:
    """Returns what tells the texts of rows: other prompts may have the same ids."""
    texts = (json.dumps([row["prompt_tokens"], row["tokens"]]) for row in rows)
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def write_normalizers(path: Path, rows: Sequence[dict], models: Sequence[str], found: Normalizers) -> None:
    """Writes what was read, whole or not at all.

    Args:
      models: what tells the models that have read, and in which precision.
    """
    kept = {
        "models": list(models),
        "strengths": list(found.strengths),
        "rows": _keys(rows),
        "log_normalizers": found.log_normalizers.tolist(),
        "kl": found.kl.tolist(),
    }
    write_json(path, kept)


class Kept(TypedDict):
    """What the file holds."""

    models: list[str]
    strengths: list[Number]
    rows: list[str]
    log_normalizers: list[list[Number]]
    kl: list[list[Number]]


def _check_shape(kept: Kept) -> None:
    shape = len(kept["rows"]), len(kept["strengths"])
    for name in ("log_normalizers", "kl"):
        if len(kept[name]) != shape[0] or any(len(each) != shape[1] for each in kept[name]):
            raise ValueError(f"{name}: expected {shape[0]} lists of {shape[1]} numbers")


def kept_normalizers(
    path: Path, rows: Sequence[dict], models: Sequence[str], strengths: Sequence[float]
) -> Normalizers | None:
    """Returns what was written of these rows at these strengths, None where it was not.

    Raises:
      ValueError: the file is broken.
    """
    if not path.is_file():
        return None
    try:
        kept = read_json(path)
        check_type(kept, Kept)
        _check_shape(kept)
    except ValueError as error:
        raise ValueError(
            f"{shown(path, 200)}: broken, remove it to have the rows read again: {error}"
        ) from None
    places = {key: n for n, key in enumerate(kept["rows"])}
    wanted = [places.get(key) for key in _keys(rows)]
    if kept["models"] != list(models) or None in wanted or not {*strengths} <= {*kept["strengths"]}:
        return None
    columns = [kept["strengths"].index(strength) for strength in strengths]
    log_normalizers, kl = (
        np.array(kept[name], np.float64)[np.ix_(wanted, columns)] for name in ("log_normalizers", "kl")
    )
    return Normalizers(tuple(strengths), log_normalizers, kl)
