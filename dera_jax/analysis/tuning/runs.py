"""What a strength is chosen and judged on: the runs, their parts, and what is known of their models."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dera_jax.analysis.curves.reading import is_curve, read_curve_rows
from dera_jax.analysis.tuning.choose import check_parts, split
from dera_jax.analysis.tuning.grid import FIELDS, Grid, read_grid, reward_names, told_names
from dera_jax.common.differences import Difference, differences
from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown
from dera_jax.results.asked import check_whole
from dera_jax.results.manifests import LATER, manifest_path, read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.strengths import Strength, strength_from_json


@dataclass(frozen=True)
class Run:
    """A sweep's rows."""

    path: Path
    rows: list[dict]
    manifest: dict | None
    """None where it is not beside the rows."""
    is_curve: bool = False
    """Whether a row stands for what all completions of a prompt say of a strength."""

    @cached_property
    def by_strength(self) -> dict[Strength, list[dict]]:
        """The rows of each strength."""
        groups = defaultdict(list)
        for row in self.rows:
            groups[strength_from_json(row["lambda"])].append(row)
        return dict(groups)

    @property
    def name(self) -> str:
        """Its path, as messages show it."""
        return shown(self.path, 200)

    @property
    def models(self) -> int:
        """How many aligned models there are."""
        return len(next(iter(self.by_strength)))

    @property
    def rewards(self) -> list[str]:
        """Names of those that the rows have."""
        return reward_names(self.rows)

    @property
    def reference(self) -> str | None:
        """Fingerprint of the reference, where the manifest tells."""
        found = ((self.manifest or {}).get("identity", {}).get("models") or {}).get("reference")
        return found if isinstance(found, str) else None


def read_run(path: Path) -> Run:
    """Returns the run in a folder, or of a file of rows; or a curve, as if its points had been decoded.

    Raises:
      ValueError: there are no rows, or the manifest is broken.
    """
    if is_curve(path):
        return Run(path, read_curve_rows(path), None, is_curve=True)
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{shown(path, 200)}: no rows yet")
    return Run(path, rows, read_manifest(path) if manifest_path(path).exists() else None)


def parts_of_one(
    run: Run,
    names: Sequence[str],
    share: float,
    seed: int,
    allow_missing: bool,
    tell: Tell = warnings.warn,
) -> tuple[Grid, Grid]:
    """Returns a run's completions to choose on, and those to validate on, on other prompts.

    Args:
      names: figures.
      share: of the prompts that validate.
      seed: of which.
      tell: hears what is left out.

    Raises:
      ValueError: cells are missing, or there are too few prompts or strengths.
    """
    return split(_grid(run, run.by_strength, names, allow_missing, tell), share, seed)


def parts_of_two(
    run: Run,
    second: Run,
    names: Sequence[str],
    allow_missing: bool,
    option: str = "--validation",
    tell: Tell = warnings.warn,
) -> tuple[Grid, Grid]:
    """Returns the completions of a run to choose on, and those of a second to validate on.

    Args:
      names: figures.
      option: that names the second run, for errors.
      tell: hears what is left out.

    Raises:
      ValueError: cells are missing, or there are too few prompts or strengths; the second run is of other
        models, decoded otherwise, or has draws of the first.
    """
    where = f"{option}={second.name}"
    if run.is_curve != second.is_curve:
        raise ValueError(f"{where}: expected {'a curve' if run.is_curve else 'a run'}, as {run.name} is one")
    ways = [way(each.manifest) for each in (run, second) if each.manifest]
    if len(ways) == 2 and (other := differing(*ways)):
        raise ValueError(f"{where}: {shown(other.name, 60)} is not that of {run.name}")
    draws = [{(str(row.get("prompt")), row.get("seed")) for row in each.rows} for each in (run, second)]
    if not run.is_curve and (same := len(draws[0] & draws[1])):
        raise ValueError(f"{where}: {same} of its prompts are those of {run.name}, with the same seed")
    for name in names:
        if name not in (*second.rewards, *FIELDS):
            raise ValueError(
                f"{where}: no reward {name!r}; the rows have {told_names(second.rewards) or 'none'}"
            )
    common = run.by_strength.keys() & second.by_strength.keys()
    if len(common) < len(run.by_strength):
        tell(f"{len(common)} of {len(run.by_strength)} strengths are in both runs")
    choosing, validation = (
        _grid(each, {s: each.by_strength[s] for s in common}, names, allow_missing, tell)
        for each in (run, second)
    )
    check_parts(choosing, validation)
    return choosing, validation


def _grid(
    run: Run,
    groups: Mapping[Strength, Sequence[dict]],
    names: Sequence[str],
    allow_missing: bool,
    tell: Tell,
) -> Grid:
    if not run.is_curve:
        check_whole(
            run.path,
            run.rows,
            allow_missing,
            "leaves out what is not there at every strength",
            None if len(groups) == len(run.by_strength) else groups,
            tell=lambda line: tell(f"warning: {line}"),
        )
    grid, left_out = read_grid(groups, names, run.name, allow_missing)
    if left_out:
        tell(f"{shown(run.name, 100)}: {left_out} completions left out, not there at every strength")
    return grid


def way(manifest: Mapping) -> dict:
    """Returns what rows must share to be compared: all but the seed of their draws."""
    decode = {name: value for name, value in manifest["identity"].get("decode", {}).items() if name != "seed"}
    return manifest["identity"] | {"decode": decode}


def differing(there: Mapping, here: Mapping) -> Difference | None:
    """Returns the first field whose value is another in the two, None if there is none.

    What older runs do not tell is no difference.
    """
    unknown = [name for name in LATER if name not in there or name not in here]
    return next(iter(differences(there, here, unknown)), None)


def model_names(run: Run, given: str | None) -> list[str | None]:
    """Returns where the aligned models lie, None where that is unknown.

    Args:
      given: names with commas between, if not those of the run's manifest.

    Raises:
      ValueError: another number of them.
    """
    told = ((run.manifest or {}).get("provenance") or {}).get("models", [])
    names = given.split(",") if given else [model["name"] for model in told[1:]]
    if given and len(names) != run.models:
        raise ValueError(f"--aligned: the run has {run.models} aligned, found {len(names)} in {given!r}")
    return names if len(names) == run.models else [None] * run.models


def known_betas(run: Run, manifests: Sequence[dict | None], given: str | None) -> list[float | None]:
    """Returns the KL strength of each aligned model: as given, as in the rows, or as in its manifest.

    Args:
      manifests: of the models, None where there is none.
      given: numbers with commas between.

    Raises:
      ValueError: not such; or the rows have others.
    """
    told = {str(beta): beta for row in run.rows if (beta := row.get("beta")) is not None}
    in_rows = _for_each(next(iter(told.values())), run.models) if len(told) == 1 else None
    if given is None:
        return in_rows or [(manifest or {}).get("beta") for manifest in manifests]
    try:
        betas = _for_each([float(part) for part in given.split(",")], run.models)
    except ValueError:
        betas = []
    if len(betas) != run.models or not all(0 <= beta < float("inf") for beta in betas):
        raise ValueError(
            f"--beta: expected a number of at least 0, or one for each aligned model, found {given!r}"
        )
    if in_rows and in_rows != betas:
        raise ValueError(f"--beta: the rows have {', '.join(map(str, in_rows))}, found {given}")
    return betas


def _for_each(value: float | list[float], count: int) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return values * count if len(values) == 1 else values
