"""What a campaign prints: a table of counts, and how each failure is repeated."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.campaign.drive import FAULTS, Outcome
from tests.campaign.kills import Found


def input_table(outcomes: Sequence[Outcome]) -> str:
    """Returns a line for each kind of file and command, one for each kind, and one for all."""
    by_pair: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for each in outcomes:
        by_pair[each.case.kind, "" if each.case.kind == "valid" else each.case.command].append(each)
    rows = [("file", "command", "tried", "refused", "accepted", *FAULTS)]
    rows += [(*pair, *_counts(found)) for pair, found in sorted(by_pair.items())]
    rows.append(("all", "", *_counts(outcomes)))
    return "\n".join(_line(row) for row in rows)


def _counts(outcomes: Sequence[Outcome]) -> list[int | str]:
    faults = Counter(fault for each in outcomes for fault in each.faults)
    told = [len(outcomes), sum(o.refused for o in outcomes), sum(o.accepted for o in outcomes)]
    return [*told, *(faults[name] or "·" for name in FAULTS)]


def _line(row: Sequence) -> str:
    names, figures = row[:2], row[2:]
    return "".join([f"{names[0]:<22}{names[1]:<17}", *(f"{value!s:>10}" for value in figures)]).rstrip()


def input_failures(outcomes: Sequence[Outcome]) -> str:
    """Returns each failure on a line, with what repeats it."""
    return "\n".join(
        f"{'+'.join(each.faults)} ({each.code}): --repeat={shlex.quote(each.case.name)}\n    {ascii(each.said)[1:-1]}"
        for each in outcomes
        if each.faults
    )


def kill_table(found: Sequence[Found], operations: dict[str, int]) -> str:
    """Returns a line for each command that was killed, and one for all."""
    rows = ["command                 operations     tried    killed      same      lost different"]
    for name in [*dict.fromkeys(each.tried.scenario for each in found), "all"]:
        own = [each for each in found if name in ("all", each.tried.scenario)]
        figures = [
            operations.get(name, sum(operations.values())), len(own), sum(each.reached for each in own),
            sum(not each.fault for each in own), sum(each.fault == "lost" for each in own),
            sum(each.fault == "different" for each in own),
        ]  # fmt: skip
        rows.append(f"{name:<24}" + "".join(f"{figure:>10}" for figure in figures))
    return "\n".join(rows)


def kill_failures(found: Sequence[Found]) -> str:
    """Returns each failure on a line, with what repeats it."""
    return "\n".join(
        f"{each.fault} after {each.where}: --repeat={shlex.quote(each.tried.name)}\n    {ascii(each.said)[1:-1]}"
        for each in found
        if each.fault
    )
