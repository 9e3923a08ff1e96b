"""Rows read from a run's folder or its file."""

from collections.abc import Collection
from pathlib import Path

from dera_jax.common.files import read_bytes
from dera_jax.common.shown import shown
from dera_jax.results.row_file import part_paths
from dera_jax.results.rows import KEY_FIELDS, RowKey, parse_rows, row_key
from dera_jax.strengths import strength_from_json

ENDINGS = ("", ".gz", ".xz")
"""Of the file of rows: as written, or compressed."""


def read_rows(run: str | Path, needed: Collection[str] = KEY_FIELDS) -> list[dict]:
    """Returns the rows of a run, in the order they were written.

    A torn last line, as a killed run leaves it, is left out. Rows that are in the files of single
    processes come last.

    Args:
      run: a folder with `rows.jsonl`, `rows.jsonl.gz` or `rows.jsonl.xz`, or such a file.
      needed: fields that no row may lack.

    Raises:
      ValueError: there is no such file, or another line of it is broken.
    """
    run = Path(run)
    # Before the file that they are merged into, or rows could be missed in between.
    paths = part_paths(run) if run.is_dir() else []
    parts = [row for path in paths for row in _rows_if_there(path, needed)]
    path = _rows_file(run)
    rows = parse_rows(read_bytes(path), path, needed)[0]
    found = [*rows, *new_rows(parts, set(map(row_key, rows)) if parts else set())]
    check_models(found, run)
    return found


def _rows_if_there(path: Path, needed: Collection[str]) -> list[dict]:
    try:
        return parse_rows(read_bytes(path), path, needed)[0]
    except ValueError:
        if path.exists():
            raise
        return []  # merged since it was listed


def check_models(rows: list[dict], run: Path, expected: int | None = None) -> None:
    """Raises ValueError where rows of a run's files are of other numbers of aligned models than one."""
    counts = {len(strength_from_json(row["lambda"])) for row in rows}
    if len(counts) > 1 or (counts and expected not in (None, *counts)):
        raise ValueError(
            f"{shown(run, 200)}: expected in each row a number of lambda for each of "
            f"{expected or min(counts)} aligned models, found {max(counts - {expected})}"
        )


def new_rows(rows: list[dict], keys: set[RowKey]) -> list[dict]:
    """Returns those rows that are not in `keys`, each once."""
    return list({key: row for row in rows if (key := row_key(row)) not in keys}.values())


def _rows_file(run: Path) -> Path:
    if not run.is_dir():
        return run
    for ending in ENDINGS:
        if (run / f"rows.jsonl{ending}").exists():
            return run / f"rows.jsonl{ending}"
    training = "; a training is there, its curves are metrics.jsonl" * (run / "metrics.jsonl").exists()
    inner = sorted(path.parent.name for path in run.glob("*/rows.jsonl*"))
    runs = f"; runs are in its folders {shown(', '.join(inner), 200)}" if inner else ""
    raise ValueError(
        f"no run in {shown(run, 200)}: expected rows.jsonl there, or compressed, .gz or .xz{training}{runs}"
    )
