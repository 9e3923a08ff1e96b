"""What a reader of a comparison could be misled by."""


def share_of_first(found) -> tuple[float | None, int]:
    """Returns the share of verdicts for what was shown first, None without any, and their number."""
    seen = [(each.first, each.n - each.identical) for each in found if each.first is not None]
    total = sum(n for _, n in seen)
    return sum(first * n for first, n in seen) / total if total else None, total


def warnings_of(found, args) -> list[str]:
    """Returns a line for each thing that a reader of the table could be misled by."""
    lines = []
    pairs = sum(each.n + each.failures for each in found)
    if failures := sum(each.failures for each in found):
        lines.append(f"{failures} of {pairs} pairs have no verdict and are left out")
    if missing := sum(each.missing for each in found):
        lines.append(f"{missing} cells are missing; only what both runs have is compared")
    share, total = share_of_first(found)
    # Beyond what chance does to so many, two standard deviations, and worth a word.
    if share is not None and abs(share - 0.5) > max(0.1, total**-0.5):
        lines.append(
            f"the judge leans to what it sees {'first' if share > 0.5 else 'second'} "
            f"({max(share, 1 - share):.0%}{'' if args.both_orders else '; --both-orders makes those cases ties'})"
        )
    return lines
