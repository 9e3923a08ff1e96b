"""The sections of `python -m eval.bench --schedule`: what sharing saves, and its lines."""

from collections.abc import Iterator, Sequence
from functools import partial

from dera_jax.performance.bench.drafting_lines import draft_line
from dera_jax.performance.bench.searching_lines import search_line
from dera_jax.performance.bench.spreads import format_spread

SECTIONS = (
    "share",
    "draft",
    "strengths",
    "prefix",
    "refill",
    "search",
    "exact",
    "lora",
    "startup",
    "imports",
)
LORA_ROWS = (1, 8)


def measure(
    sections: Sequence[str], policies, names: Sequence[str], prompts, config, progress, random: bool
) -> Iterator[tuple[str, dict]]:
    """Yields each measurement of a pair with its section.

    Args:
      prompts: returns those of `share`, `draft` and `refill`, encoded; told the longest completion and how many.
      random: whether the pair has no language.
    """
    from dera_jax.performance.bench import drafting, prefixes, searching, starts
    from dera_jax.performance.bench import sharing as bench

    for section in sections:
        told = progress(section)
        if section == "share":
            texts = prompts(config.new_tokens, bench.SHARE_PROMPTS)
            yield from ((section, result) for result in bench.bench_share(policies, texts, config, told))
        elif section == "draft":
            if random:
                found = drafting.bench_random(policies, config, told)
            else:
                texts = prompts(config.new_tokens, drafting.PROMPTS)
                found = drafting.bench_prompts(policies, texts, config, told)
            yield from ((section, result) for result in found)
        elif section == "strengths":
            yield section, bench.bench_strengths(policies, config, told)
        elif section == "prefix":
            yield section, prefixes.bench_prefix(policies, config, told)
        elif section == "refill":
            yield section, bench.bench_refill(policies, prompts(bench.LONGEST), config, told)
        elif section == "search":
            yield from ((section, result) for result in searching.bench(policies, config, told))
        elif section == "exact":
            yield from ((section, result) for result in searching.bench_exact(policies, config, told))
        elif section == "startup":
            yield section, starts.bench_startup(names, config.repeats, told)
        elif section == "imports":
            yield section, starts.bench_imports(config.repeats, told)
        else:
            for rows in LORA_ROWS:
                yield section, bench.bench_shared_base(policies, rows, config, told)


def _strengths_line(result: dict) -> str:
    seconds = {name: figures["median"] for name, figures in result["seconds"].items()}
    return (
        f"strengths {result['rows']:3} rows, {result['prompts']} prompts of {result['prompt_tokens']} tokens, "
        f"{len(result['strengths'])} strengths, {result['new_tokens']} new tokens: one sweep {seconds['sweep']:.2f} s, "
        f"a run for each {seconds['runs']:.2f} s: {format_spread(result['times_runs'])} × "
        f"(target ≥ {result['target']:g})"
    )


def _prefix_line(result: dict) -> str:
    cached, anew = (result["seconds"][name]["median"] * 1e3 for name in ("cached", "anew"))
    times = format_spread(result["cached_to_anew"])
    return (
        f"prefix    a second turn of {result['conversation_tokens']} tokens, {result['new_tokens']} of them new, time "
        f"to first token: cached {cached:.0f} ms, not cached {anew:.0f} ms: {times} × "
        f"(target ≤ {result['target']:g})\n"
        f"{' ' * 20}time to the end of the first chunk: {format_spread(result['chunk_cached_to_anew'])} ×"
    )


def _share_line(result: dict) -> str:
    seconds = {name: figures["median"] for name, figures in result["seconds"].items()}
    return (
        f"share     {result['rows']:3} rows, {result['completions']} completions at {result['name']} strengths: shared "
        f"{seconds['shared']:.2f} s, unshared {seconds['unshared']:.2f} s: {format_spread(result['times_unshared'])} × "
        f"(target ≥ {result['target']:g})\n"
        f"{' ' * 20}{result['tokens_for_each_drawn']:.2f} tokens for each that a row drew, "
        f"{result['times_steps']:.2f} × fewer steps"
    )


def _refill_line(result: dict) -> str:
    seconds = {name: figures["median"] for name, figures in result["seconds"].items()}
    return (
        f"refill    {result['rows']:3} rows, {result['cells']} completions of {result['mean_length']:.0f} tokens on "
        f"average, at most {result['longest']}: refilled slots {seconds['refilled']:.2f} s, fixed batches "
        f"{seconds['fixed']:.2f} s: {format_spread(result['times_fixed'])} × (target ≥ {result['target']:g})\n"
        f"{' ' * 20}slots busy {result['utilization']:.0%}, {result['of_ceiling']:.2f} of what chunks allow "
        f"(target ≥ {result['of_ceiling_target']:g})"
    )


def _lora_line(result: dict) -> str:
    mixed, single = (result["seconds"][name]["median"] * 1e3 for name in ("mixed", "single"))
    return (
        f"lora      {result['rows']:3} rows, rank {result['rank']}: base and adapter {mixed:.0f} ms, base alone at "
        f"{2 * result['rows']} rows {single:.0f} ms: {format_spread(result['mixed_to_single'])} × "
        f"(target ≤ {result['target']:g})"
    )


def _startup_line(result: dict) -> str:
    cold, warm = (format_spread(result["seconds"][name]) for name in ("cold", "warm"))
    return f"startup   process to 16 tokens: {cold} s, with compilations kept {warm} s"


def _imports_line(result: dict) -> str:
    times = result["to_import_jax"]
    slowest = max((name for name in times if "--help" in name), key=lambda name: times[name]["median"])
    shown = ["import dera_jax", slowest, "plot", "tune", "compare"]
    told = ", ".join(f"{name} {format_spread(times[name])}" for name in shown)
    unit = format_spread(result["seconds"]["import jax"])
    return f"imports   times `import jax` ({unit} s): {told} (of all --help the slowest)"


LINES = {
    "share": _share_line,
    "draft": draft_line,
    "strengths": _strengths_line,
    "prefix": _prefix_line,
    "refill": _refill_line,
    "search": search_line,
    "exact": partial(search_line, section="exact"),
    "lora": _lora_line,
    "startup": _startup_line,
    "imports": _imports_line,
}
