"""The line of drafts in `python -m eval.bench --schedule`."""

from dera_jax.performance.bench.spreads import format_spread


def draft_line(result: dict) -> str:
    """Returns what is told of a measurement."""
    low, high = result["bounds"]
    plain = result["seconds"]["plain"]["median"] / result["tokens"] * result["rows"]
    head = (
        f"draft     {result['rows']:3} rows, {result['title']}: {1e3 * plain:.1f} ms a token without drafts; "
        f"{result['draft_length']} tokens drafted at a time"
    )
    return "\n".join([head, *(_drafter(result, name, low, high) for name in result["times_plain"])])


def _drafter(result: dict, name: str, low: float, high: float) -> str:
    told = f"{result['accepted'][name]:.2f} accepted" if result["drafts"][name] else "nothing drafted"
    if name == "reference":
        told += f" (by total variation {low:.2f} to {high:.2f})"
    target = result["targets"][name]
    aim = f" (target ≥ {target:g})" if target else ""
    return f"{' ' * 20}{name}: {told}, {format_spread(result['times_plain'][name])} ×{aim}"
