"""What a sweep's folder was asked for, and what of it is missing.

A command that decodes writes what it asks for into the manifest, as `asked`, before its first row: so a run
that was killed is known to lack what it lacks, whole prompts and strengths too. Of older folders `extent`
tells, which is written at the end. Besides, strengths of one folder are to be compared: what one has of most
prompts, the others should have. First turns are counted: a later one that does not fit the context is
rightly not there.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown
from dera_jax.results.manifests import Asked, manifest_path, read_manifest
from dera_jax.results.missing import Cell, cell_of, cell_order, tell_share
from dera_jax.strengths import PER_PROMPT, Strength, format_strength, strength_from_json

MOST = 1000
"""Requests that a manifest keeps."""
Prompts = range | Collection[int | str]


def request(prompt_ids: Sequence[int | str], samples: int, strengths: Sequence[Strength] | None) -> Asked:
    """Returns what a manifest keeps of a sweep's prompts, samples and strengths; None is each prompt's own."""
    numbered = list(prompt_ids) == list(range(len(prompt_ids)))
    return {
        "num_prompts": len(prompt_ids),
        **({} if numbered else {"prompt_ids": list(prompt_ids)}),
        "num_samples": samples,
        "lambda": PER_PROMPT if strengths is None else [format_strength(s) for s in strengths],
        "ended": False,
    }


def with_request(asked: Sequence[Asked], new: Asked) -> list[Asked]:
    """Returns the requests with another one, which takes the place of those that it holds."""
    if any(_holds(each, new) for each in asked):
        return list(asked)
    return [*(each for each in asked if not _holds(new, each)), new][-MOST:]


def ended(asked: Sequence[Asked], done: Asked) -> list[Asked]:
    """Returns the requests, those that `done` holds as ended."""
    return [each | {"ended": True} if _holds(done, each) else each for each in asked]


def _holds(whole: Asked, part: Asked) -> bool:
    """Whether all that `part` asks for `whole` asks for too."""
    if PER_PROMPT in (whole["lambda"], part["lambda"]):
        strengths = whole["lambda"] == part["lambda"]
    else:
        strengths = {*part["lambda"]} <= {*whole["lambda"]}
    ids, prompts = _prompts(whole), _prompts(part)
    if isinstance(ids, range) and isinstance(prompts, range):
        held = len(prompts) <= len(ids)
    else:
        held = len(prompts) <= len(ids) and all(each in ids for each in prompts)
    return strengths and held and part["num_samples"] <= whole["num_samples"]


def _prompts(asked: Asked) -> Prompts:
    ids = asked.get("prompt_ids")
    return range(asked["num_prompts"]) if ids is None else dict.fromkeys(ids).keys()


@dataclass
class _Wanted:
    """First turns that are wanted at one strength."""

    grids: list[tuple[Prompts, int]] = field(default_factory=list)
    """Prompts, each with so many samples."""
    places: Collection[Cell] = ()
    """Others."""
    unnamed: int = 0
    """How many more there are, of prompts that nobody names."""

    def __contains__(self, place: Cell) -> bool:
        return place in self.places or self._in_grids(place)

    def _in_grids(self, place: Cell) -> bool:
        return any(place[1] < samples and place[0] in prompts for prompts, samples in self.grids)

    def count(self) -> int:
        """Returns how many there are."""
        # Of a prompt of several grids, the most samples count.
        grids = sorted(self.grids, key=lambda grid: -grid[1])
        earlier = [[prompts for prompts, _ in grids[:n]] for n in range(len(grids))]
        counts = [_new(grid[0], before) * grid[1] for grid, before in zip(grids, earlier, strict=True)]
        return sum(counts) + sum(not self._in_grids(place) for place in self.places) + self.unnamed

    def __iter__(self) -> Iterator[Cell]:
        """Yields those that have names, some twice."""
        for prompts, samples in self.grids:
            yield from ((prompt, sample, 0) for prompt in prompts for sample in range(samples))
        yield from sorted(self.places, key=cell_order)


def _new(prompts: Prompts, earlier: Sequence[Prompts]) -> int:
    """Returns how many prompts are in none of the `earlier`, without going through a range's numbers."""
    if not isinstance(prompts, range):
        return sum(not any(each in others for others in earlier) for each in prompts)
    first = max((len(others) for others in earlier if isinstance(others, range)), default=0)
    listed = {each for others in earlier if not isinstance(others, range) for each in others}
    within = sum(isinstance(each, int) and first <= each < len(prompts) for each in listed)
    return max(0, len(prompts) - first) - within


def check_whole(
    run: str | Path,
    rows: Sequence[dict],
    allowed: bool,
    what: str,
    strengths: Collection[Strength] | None = None,
    to_its_end: bool = False,
    tell: Tell = warnings.warn,
) -> None:
    """Tells what a run lacks, see `tell_missing`.

    Args:
      allowed: whether it may lack something, --allow-missing.
      what: this does then, for the error.
      strengths: that are looked at; None is all.
      to_its_end: as in `tell_missing`.
      tell: hears the warning.

    Raises:
      ValueError: it lacks something, and may not.
    """
    if told := tell_missing(run, rows, strengths, to_its_end):
        if not allowed:
            raise ValueError(
                f"{shown(run, 200)}: {told}; complete the run by its command, or --allow-missing {what}"
            )
        tell(f"{shown(run, 200)}: {told}")


def tell_missing(
    run: str | Path,
    rows: Sequence[dict],
    strengths: Collection[Strength] | None = None,
    to_its_end: bool = True,
) -> str | None:
    """Returns which completions a run lacks that it was asked for, in words; None if it is whole.

    A strength that nobody asked for, and that has fewer than half of the prompts, is the prompts' own, and
    lacks none.

    Args:
      run: its folder, or its file of rows.
      rows: of it.
      strengths: that are looked at; None is all.
      to_its_end: whether a run that was stopped lacks something where all first turns are there.

    Raises:
      ValueError: the manifest is broken.
    """
    manifest = read_manifest(run) if manifest_path(run).exists() else {}
    by_strength: dict[Strength, set[Cell]] = {}
    for row in rows:
        cells = by_strength.setdefault(strength_from_json(row["lambda"]), set())
        if not row.get("turn", 0):
            cells.add(cell_of(row))
    # Rows lie as they ended; the first that is missing is that of the smallest strength.
    there = {format_strength(strength): by_strength[strength] for strength in sorted(by_strength)}
    only = None if strengths is None else set(map(format_strength, strengths))
    if told := _tell(manifest, there, only):
        return told
    asked = manifest.get("asked", [])
    later = any(row.get("turn", 0) for row in rows)
    unended = any(not each["ended"] for each in asked) if asked else not manifest.get("extent", True)
    if to_its_end and unended and (later or not asked):
        return f"the run has not ended: {len(rows)} completions so far"
    return None


def _tell(manifest: dict, there: dict[str, set[Cell]], only: Collection[str] | None) -> str | None:
    wanted = _wanted(manifest, there)
    if only is not None:
        wanted = {strength: each for strength, each in wanted.items() if strength in only}
    everywhere = set().union(*there.values())
    total = lacking = 0
    first = None
    for strength, each in wanted.items():
        found = there.get(strength, set()) if strength != PER_PROMPT else everywhere
        count, have = each.count(), sum(place in each for place in found)
        total, lacking = total + count, lacking + max(0, count - have)
        if first is None and count > have:
            first = strength, next((place for place in each if place not in found), None)
    if not lacking:
        return None
    known = bool(manifest.get("asked") or manifest.get("extent"))
    return tell_share(lacking, total if known else None, *first)


def _wanted(manifest: dict, there: dict[str, set[Cell]]) -> dict[str, _Wanted]:
    """Returns what is wanted at each strength, by its text; under PER_PROMPT, at any."""
    everywhere = set().union(*there.values())
    shared = [strength for strength, found in there.items() if 2 * len(found) > len(everywhere)]
    asked, unnamed = manifest.get("asked", []), 0
    if not asked and len(shared) == len(there):
        asked, unnamed = _asked_by_extent(manifest.get("extent", {}), there)
    own = bool(asked) and all(each["lambda"] == PER_PROMPT for each in asked)
    wanted = {strength: _Wanted(places=everywhere) for strength in shared if not own}
    for each in asked:
        prompts = _prompts(each)
        for strength in [PER_PROMPT] if each["lambda"] == PER_PROMPT else each["lambda"]:
            grids = wanted.setdefault(strength, _Wanted(unnamed=unnamed))
            grids.unnamed = unnamed
            grids.grids.append((prompts, each["num_samples"]))
    return wanted


def _asked_by_extent(extent: dict, there: dict[str, set[Cell]]) -> tuple[list[dict], int]:
    """Returns what a folder had that kept no requests, if rows are lost since, and its prompts without a name.

    Such a folder may have grown into no rectangle: while nothing is lost, its rows tell more than the extent.
    """
    prompts, samples = extent.get("num_prompts", 0), extent.get("num_samples", 0)
    places = set().union(*there.values())
    ids = dict.fromkeys(prompt for prompt, _, _ in sorted(places, key=cell_order))
    most = max((sample + 1 for _, sample, _ in places), default=0)
    lambdas = extent.get("lambda", [])
    if prompts <= len(ids) and samples <= most and set(lambdas) <= there.keys():
        return [], 0
    request = {"num_prompts": prompts, "num_samples": samples, "lambda": lambdas}
    if all(isinstance(each, int) and 0 <= each < prompts for each in ids):
        return [request], 0
    return [request | {"prompt_ids": list(ids)}], max(0, prompts - len(ids)) * samples
