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
    kept = f"{result['kept'][name]:.2f} kept" if result["drafts"][name] else "nothing drafted"
    if name == "reference":
        kept += f" (by total variation {low:.2f} to {high:.2f})"
    target = result["targets"][name]
    told = f" (target ≥ {target:g})" if target else ""
    return f"{' ' * 20}{name}: {kept}, {format_spread(result['times_plain'][name])} ×{told}"
