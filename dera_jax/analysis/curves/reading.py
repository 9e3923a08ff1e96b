"""A curve as rows: one of each prompt and strength that is drawn, which stands for what the prompt's pool says."""

from pathlib import Path
from typing import TypedDict

from dera_jax.analysis.curves.report import FORMAT
from dera_jax.common.json_files import check_type, read_json
from dera_jax.common.shown import shown
from dera_jax.results.rows import Number

ENDING = ".json"
"""Of a curve's file, which tells it from a file of rows."""
OTHER = ("cut", "log_z", "log_ratio")
"""Figures that are no rewards, KL or length."""


PointOfFile = TypedDict(
    "PointOfFile", {"lambda": Number, "drawn": bool, "by_prompt": dict[str, list[Number | None]]}
)
"""A strength of it."""


class CurveFile(TypedDict):
    """What of a curve's JSON is read."""

    format: int
    law: str
    beta: Number | None
    prompt_ids: list[int | str]
    points: list[PointOfFile]


def is_curve(path: Path) -> bool:
    """Whether a path names a curve, not a run."""
    return path.suffix == ENDING


def read_curve_rows(path: Path) -> list[dict]:
    """Returns the rows of a curve.

    Raises:
      ValueError: it is no curve, or nothing of it is drawn.
    """
    curve = read_json(path)
    name = shown(path, 200)
    try:
        check_type(curve, CurveFile)
    except ValueError as error:
        raise ValueError(f"{name}: expected a curve, as eval.curve writes it: {error}") from None
    if curve["format"] != FORMAT:
        raise ValueError(f"{name}: expected a curve of format {FORMAT}, found {curve['format']}")
    count = len(curve["prompt_ids"])
    for number, point in enumerate(curve["points"]):
        for figure in ("kl", "length"):
            if figure not in point["by_prompt"]:
                raise ValueError(f"{name}: at points[{number}].by_prompt: no {figure!r} in it")
        for figure, values in point["by_prompt"].items():
            if len(values) != count:
                raise ValueError(
                    f"{name}: at points[{number}].by_prompt.{shown(figure, 60)}: expected {count} numbers, one for "
                    f"each prompt, found {len(values)}"
                )
    points = [point for point in curve["points"] if point["drawn"]]
    if not points:
        raise ValueError(f"{name}: at no strength do enough completions carry the weight")
    return [_row(curve, point, number) for point in points for number in range(len(curve["prompt_ids"]))]


def _row(curve: dict, point: dict, number: int) -> dict:
    values = {name: each[number] for name, each in point["by_prompt"].items()}
    return {
        "prompt_id": curve["prompt_ids"][number],
        "sample": 0,
        "lambda": point["lambda"],
        "beta": curve["beta"],
        "kl_to_reference": values["kl"],
        "length": values["length"],
        "rewards": {name: value for name, value in values.items() if name not in (*OTHER, "kl", "length")},
    }
