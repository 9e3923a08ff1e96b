"""The lines of searches and exact draws in `python -m eval.bench --schedule`."""

from dera_jax.performance.bench.spreads import format_spread


def search_line(result: dict, section: str = "search") -> str:
    """Returns what is told of a measurement."""
    plain = result["seconds"]["plain"]["median"] / result["tokens"]
    lines = [f"{section:<9} against {result['title']} of the plain draw, {1e3 * plain:.2f} ms a token:"]
    for name, times in result["times_plain"].items():
        target = result["targets"][name]
        aim = f" (target ≤ {target:g})" if target else ""
        lines.append(f"{' ' * 20}{name}: {format_spread(times)} × the time{aim}")
    return "\n".join(lines)
