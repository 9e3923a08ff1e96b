"""The section of `python -m eval.bench --serve`: what a server's clients get, and its lines."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from dera_jax.performance.bench.pairs import torch_device
from dera_jax.performance.bench.spreads import format_spread, format_threads

SECTIONS = ("serve",)
NEEDED = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")


def check_installed() -> None:
    """Raises ValueError where a server cannot run for want of a package."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ValueError(f"--serve needs {name}: pip install 'dera_jax[serve]'")


def measure(
    sections: Sequence[str],
    policies,
    rows: Sequence[int],
    config,
    with_torch: bool,
    folder: Path,
    device: str,
    progress,
) -> Iterator[tuple[str, dict]]:
    """Yields each measurement of a pair with its section, one for each number of clients.

    Args:
      folder: for files of the pair, which the servers read.
      device: JAX's, in words.
    """
    from dera_jax.performance.bench import serving

    for section in sections:
        serving.save_endless(policies, folder)
        with ExitStack() as stack:
            theirs = None
            if with_torch:
                progress(section)("starting the server on torch, choosing its threads")
                theirs = stack.enter_context(serving.plain_server(folder, torch_device(device)))
            for clients in rows:
                told = progress(f"{section}, {clients} clients")
                yield section, serving.bench_serve(policies, folder, clients, config, theirs, told)


INDENT = " " * 20


def _serve_line(result: dict) -> str:
    speed = {name: round(figures["median"]) for name, figures in result["tokens_per_second"].items()}
    line = (
        f"serve     {result['rows']:3} clients, {result['requests']} requests of {result['new_tokens']} tokens at "
        f"{min(len(result['strengths']), result['requests'])} strengths: served {speed['ours']} tokens/s, offline "
        f"{speed['offline']}: {format_spread(result['serve_to_offline'])} × offline\n"
        f"{INDENT}all asked at once {speed['busy']} tokens/s: {format_spread(result['busy_to_offline'])} × offline "
        f"(target ≥ {result['target']:g})\n"
        f"{INDENT}{_latency(result['latency']['ours'])}\n"
        f"{INDENT}--steps={result['steps']['short']}: {speed['short']} tokens/s, "
        f"{format_spread(result['short_to_offline'])} × offline; {_latency(result['latency']['short'])}"
    )
    if "times_torch" not in result:
        return line
    return (
        f"{line}\n{INDENT}torch {speed['torch']} tokens/s, {format_threads(result)}: "
        f"ours {format_spread(result['times_torch'])} × torch's\n"
        f"{INDENT}torch's {_latency(result['latency']['torch'])}"
    )


def _latency(figures: dict) -> str:
    first, each, whole = (figures[name] for name in ("first", "per_token", "whole"))
    return (
        f"first text {first['p50']:.2f} s (p99 {first['p99']:.2f}), each token after the first "
        f"{each['p50'] * 1e3:.1f} ms ({each['p99'] * 1e3:.1f}), whole answer {whole['p50']:.2f} s ({whole['p99']:.2f})"
    )


LINES = {"serve": _serve_line}
