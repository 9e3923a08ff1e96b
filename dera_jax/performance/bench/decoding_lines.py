"""The sections that decode: what is measured, and its lines."""

from collections.abc import Iterator, Sequence

from dera_jax.performance.bench.pairs import sweep_prompts
from dera_jax.performance.bench.spreads import format_spread, format_threads

SECTIONS = ("decode", "overhead", "sweep")


def measure(
    sections: Sequence[str], policies, rows: Sequence[int], config, torch_pair, prompts: str | None, progress
) -> Iterator[tuple[str, dict]]:
    """Yields each measurement of a pair with its section."""
    from dera_jax.performance.bench import decoding

    for section in sections:
        if section == "sweep":
            encoded = sweep_prompts(prompts, policies, config.new_tokens)
            yield section, decoding.bench_sweep(policies, encoded, config, torch_pair, progress(section))
            continue
        for count in rows:
            told = progress(f"{section}, {count} rows")
            if section == "decode":
                yield section, decoding.bench_decode(policies, count, config, torch_pair, told)
            else:
                yield section, decoding.bench_overhead(policies, count, config, told)


INDENT = " " * 20


def _decode_line(result: dict) -> str:
    speed = {name: round(figures["median"]) for name, figures in result["tokens_per_second"].items()}
    first = result["seconds"]["mixed"]["first"]
    line = (
        f"decode    {result['rows']:3} rows: mixed {speed['mixed']} tokens/s, single {speed['single']}: "
        f"{format_spread(result['mixed_to_single'])} × single's time; first call, compiling, {first:.1f} s"
    )
    if "times_torch" not in result:
        return line
    target = f" (target ≥ {result['target']:g})" if result["target"] else ""
    agreement = result["greedy_agreement"]
    return (
        f"{line}\n{INDENT}torch {speed['torch']} tokens/s, {format_threads(result)}: "
        f"ours {format_spread(result['times_torch'])} × torch's{target}; "
        f"greedy tokens agree {agreement['same']}/{agreement['steps']}"
    )


def _overhead_line(result: dict) -> str:
    whole, forwards = (result["seconds"][name]["median"] * 1e3 for name in ("whole", "forwards"))
    return (
        f"overhead  {result['rows']:3} rows: whole {whole:.0f} ms, both models' passes {forwards:.0f} ms: "
        f"{format_spread(result['whole_to_forwards'])} × (target ≤ {result['target']:g})"
    )


def _sweep_line(result: dict) -> str:
    ours, size = result["seconds"]["ours"], (len(result["strengths"]), result["prompts"], result["samples"])
    line = (
        f"sweep     {size[0]} strengths × {size[1]} prompts × {size[2]} samples, {result['rows']} rows: "
        f"{ours['median']:.2f} s; first call, compiling, {ours['first']:.1f} s"
    )
    if "times_torch" not in result:
        return line
    calls, theirs = result["torch_calls"], result["seconds"]["torch"]["median"]
    return (
        f"{line}\n{INDENT}torch loop {theirs:.1f} s, {format_threads(result)}, scaled from {calls['timed']} of its "
        f"{calls['all']} calls: {format_spread(result['times_torch'])} × ours (target ≥ {result['target']:g})"
    )


LINES = {"decode": _decode_line, "overhead": _overhead_line, "sweep": _sweep_line}
