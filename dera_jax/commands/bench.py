"""Measure speed as ratios, in one run that takes turns: mixing against one model, bare passes and torch.

decode    tokens per second of one model and of the mixture; the mixture against `transformers` on
          torch with a logits processor that caches the reference (prefill included, on both sides)
overhead  whole steps against the same scan with both models' forward passes alone, their next token
          made of each model's largest logit, so that every word of both heads is computed
sweep     11 strengths × 8 prompts × 4 samples in batches of 32 rows, against a torch loop over
          prompts and strengths with 4 samples per call (of the given pair)

With --train, of each pair's aligned model:
sft, dpo  tokens per second of training, against TRL on torch; the share of the matrix product's peak
rlhf      seconds of a policy-gradient step of 128 rows and of its parts, against a plain script's
          (of the given pair)

With --schedule, what sharing saves:
strengths a sweep of 11 strengths against 11 runs of one, with prompts of 384 tokens
refill    slots that are refilled against fixed batches, with completions that end with a line, and the
          share of slots that is busy (of the given pair)
lora      a base mixed with an adapter on it against the base alone at twice the rows
startup   from the start of a process to its first tokens, with and without compilations kept

Times are of whole calls that end with tokens on the host; EOS is disabled. Each figure is a median
with its range over the repeats. Without torch its columns are left out.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dera_jax.commands.options.cli import Parser, announce_devices, check_file, command_line
from dera_jax.commands.options.models import model_names
from dera_jax.commands.process.endings import command
from dera_jax.common.json_files import write_json
from dera_jax.common.provenance import provenance
from dera_jax.performance.bench import sharing_lines, training_lines
from dera_jax.performance.bench.spreads import format_spread

SECTIONS = ("decode", "overhead", "sweep")
ONCE = ("sweep", "rlhf", "refill", "startup")
"""Of the given pair alone."""
SHAPES = {
    # 15.2 M parameters with the embedding as the head; a head of its own would make them 24.4 M.
    "15m": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}
"""Random models: fields of their `config.json`."""
OPENINGS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, a boy named Tom went to the park with his mom.",
    "The cat and the dog were best friends.",
    "Ben found a big red ball under the tree.",
    "It was a cold day and the snow was falling.",
    "Mia wanted to bake a cake for her grandma.",
    "There was a bird who could not sing.",
    "The old man had a small boat by the sea.",
)
"""Prompts of the sweep where the toy's are not shipped."""


def parser() -> Parser:
    """Returns the command's options."""
    result = Parser("bench", __doc__)
    result.add_argument(
        "--reference", metavar="MODEL", help="with --aligned: the pair (default: the toy pair)"
    )
    result.add_argument("--aligned", metavar="MODEL")
    result.add_argument(
        "--shape", choices=(*SHAPES, "none"), default="15m", help="random Llama pair beside it (default 15m)"
    )
    result.add_argument("--rows", default="1,8,32", metavar="N,N…", help="rows of a batch (default 1,8,32)")
    result.add_argument("--new-tokens", type=int, default=128, metavar="N", help="of every row (default 128)")
    result.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default 5)")
    result.add_argument(
        "--train", action="store_true", help="measure training: sections " + ",".join(training_lines.SECTIONS)
    )
    result.add_argument(
        "--schedule",
        action="store_true",
        help="measure sharing: sections " + ",".join(sharing_lines.SECTIONS),
    )
    result.add_argument(
        "--sections",
        metavar="A,B…",
        help=f"(default: {','.join(SECTIONS)}; all of --train's or --schedule's)",
    )
    result.add_argument("--prompts", metavar="PROMPTS", help="of the sweep: its first 8 (default: the toy's)")
    result.add_argument("--no-torch", action="store_true", help="leave out the comparison with torch")
    result.add_argument("--out", type=Path, metavar="FILE.json", help="write every repeat")
    return result


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(argv)
    check_file("--out", args.out, ".json")
    if args.train and args.schedule:
        raise ValueError("expected --train or --schedule, found both")
    known = SECTIONS
    if args.train or args.schedule:
        known = (training_lines if args.train else sharing_lines).SECTIONS
    sections, rows, names = _chosen(args.sections, known), _counts(args.rows), _pair_names(args)
    from dera_jax.performance.bench import (  # here, because --help should not wait for JAX
        sides,
        timing,
    )

    config = timing.BenchConfig(args.new_tokens, args.repeats)
    device = announce_devices()
    needed = ("torch", "trl", "datasets") if args.train else ("torch",)
    with_torch = not args.schedule and _torch_wanted(args.no_torch, needed)
    report = provenance(command_line("eval.bench", argv), device=device, cpu_count=os.cpu_count())
    report["versions"]["torch"] = version("torch") if with_torch else None
    if args.train:
        report["versions"]["trl"] = version("trl") if with_torch else None
    report["settings"] = {**asdict(config), "lambda": sides.LAMBDA, "prompt_tokens": sides.PROMPT_TOKENS}
    report |= {"models": [], **{section: [] for section in sections}}
    save = partial(write_json, args.out, report) if args.out else lambda: None
    # Before anything is measured: a name that cannot be written is told now, not in ten minutes.
    save()
    with tempfile.TemporaryDirectory() as folder:
        for number, policies in enumerate(_pairs(names, args.shape, Path(folder) / "random")):
            report["models"].append(_describe(policies))
            print(f"\n{_title(report['models'][-1])}", flush=True)
            place = Path(folder) / str(number)
            # Random models have no language to sweep prompts in, nor lines to end.
            chosen = [section for section in sections if number == 0 or section not in ONCE]
            if args.train:
                model, counts = policies[-1], (config.new_tokens, config.repeats)
                found = training_lines.measure(chosen, model, *counts, with_torch, place, _progress)
            elif args.schedule:
                prompts = partial(_sweep_prompts, args.prompts, policies)
                given = [name for name in names if name]
                found = sharing_lines.measure(chosen, policies, given, prompts, config, _progress)
            else:
                torch_pair = _torch_pair(policies, place, device) if with_torch else None
                found = _measure(chosen, policies, rows, config, torch_pair, args.prompts)
            for section, result in found:
                report[section].append(result)
                print(LINES[section](result), flush=True)
                save()


def _measure(sections, policies, rows, config, torch_pair, prompts: str | None) -> Iterator[tuple[str, dict]]:
    """Yields each measurement of a pair with its section."""
    from dera_jax.performance.bench import decoding

    for section in sections:
        if section == "sweep":
            encoded = _sweep_prompts(prompts, policies, config.new_tokens)
            yield section, decoding.bench_sweep(policies, encoded, config, torch_pair, _progress(section))
            continue
        for count in rows:
            progress = _progress(f"{section}, {count} rows")
            if section == "decode":
                yield section, decoding.bench_decode(policies, count, config, torch_pair, progress)
            else:
                yield section, decoding.bench_overhead(policies, count, config, progress)


def _pair_names(args) -> tuple[str | None, str | None]:
    """Returns the reference and the aligned model; None and None stand for the toy pair."""
    reference, aligned = model_names(args)
    if aligned and len(aligned) > 1:
        raise ValueError(f"--aligned: expected one model, found {len(aligned)} in {args.aligned!r}")
    return reference, aligned and aligned[0]


def _pairs(names: tuple[str | None, str | None], shape: str, folder: Path) -> Iterator[tuple]:
    """Yields the given pair, or the toy, and then the random one."""
    from dera_jax.performance.bench.sides import random_policies
    from dera_jax.policies.load import load_policies

    yield load_policies(*names)
    if shape != "none":
        policies = random_policies(folder, SHAPES[shape])
        name = f"random Llama of {_num_parameters(policies[0]) / 1e6:.1f} M parameters"
        yield tuple(replace(policy, name=name) for policy in policies)


def _torch_pair(policies, folder: Path, device: str):
    """Returns the same two models on torch, through files."""
    import jax
    import torch
    from transformers.utils import logging

    from dera_jax.performance.bench.torch_decoding import TorchPair
    from dera_jax.policies.save import save_policy

    logging.disable_progress_bar()
    folders = [folder / name for name in ("reference", "aligned")]
    for policy, place in zip(policies, folders, strict=True):
        save_policy(policy, place)
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    if jax.default_backend() != "cpu" and not on_gpu:
        print(f"note: torch runs on the CPU, JAX on {device}: their ratio compares machines", file=sys.stderr)
    return TorchPair(*folders, device="cuda" if on_gpu else "cpu")


def _torch_wanted(no_torch: bool, needed: Sequence[str]) -> bool:
    missing = [name for name in needed if find_spec(name) is None]
    if not no_torch and missing:
        print(f"{missing[0]} is not installed: the comparison with it is left out", file=sys.stderr)
        return False
    return not no_torch


def _sweep_prompts(spec: str | None, policies, new_tokens: int):
    from dera_jax.data.encoding import encode_prompts
    from dera_jax.data.prompts import as_prompts, load_prompts
    from dera_jax.data.records import ASSETS, SHIPPED
    from dera_jax.performance.bench import decoding

    if spec is None and (ASSETS / SHIPPED["toy"]).is_file():
        spec = "toy"
    prompts = load_prompts(spec, decoding.SWEEP_PROMPTS) if spec else as_prompts(OPENINGS)
    return encode_prompts(policies, prompts, new_tokens)


def _chosen(text: str | None, known: Sequence[str]) -> list[str]:
    sections = list(known) if text is None else text.split(",")
    for section in sections:
        if section not in known:
            raise ValueError(f"--sections: expected some of {', '.join(known)}, got {section!r}")
    return sections


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and len(part) <= 6 and int(part) for part in parts):
        raise ValueError(f"--rows: expected whole numbers from 1 to 999999, commas between, got {text!r:.60}")
    return tuple(map(int, parts))


def _progress(where: str):
    return lambda line: print(f"  … {where}: {line}", file=sys.stderr, flush=True)


INDENT = " " * 20


def _num_parameters(policy) -> int:
    """Returns how many numbers a policy's parameters are; a shared embedding counts once."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(policy.params))


def _describe(policies) -> dict:
    reference, aligned = policies
    return {
        "reference": reference.name,
        "aligned": aligned.name,
        "parameters": _num_parameters(aligned),
        "vocab_size": aligned.config.vocab_size,
        "dtype": aligned.config.dtype,
        "fingerprints": [policy.fingerprint for policy in policies],
    }


def _title(model: dict) -> str:
    return (
        f"{model['reference']} and {model['aligned']}: {model['parameters']:,} parameters each, "
        f"{model['vocab_size']} words, {model['dtype']}"
    )


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
        f"{line}\n{INDENT}torch {speed['torch']} tokens/s, {_threads(result)}: "
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
        f"{line}\n{INDENT}torch loop {theirs:.1f} s, {_threads(result)}, scaled from {calls['timed']} of its "
        f"{calls['all']} calls: {format_spread(result['times_torch'])} × ours (target ≥ {result['target']:g})"
    )


def _threads(result: dict) -> str:
    chosen = result["torch_threads"]["chosen"]
    return f"{chosen} thread{'s' * (chosen > 1)}"


LINES = {
    "decode": _decode_line,
    "overhead": _overhead_line,
    "sweep": _sweep_line,
    **training_lines.LINES,
    **sharing_lines.LINES,
}
