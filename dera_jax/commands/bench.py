"""Measures speed as ratios: the mixture against one model, bare forward passes and torch, in turns.

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
share     strengths that share rows while they draw the same tokens, against rows of their own: 11 strengths,
          41, and 3 far apart (of the given pair)
draft     tokens drafted ahead and checked several at a time, against plain steps, one row at a time
strengths a sweep of 11 strengths against 11 runs of one, with prompts of 384 tokens (rows not shared)
prefix    time to the first token of a chat's second turn, with the first turn cached and without
refill    slots that are refilled against fixed batches, with completions that end with a line, and the
          share of slots that is busy (of the given pair)
search    guided searches of one completion against the plain draw, and best of 8 against eight samples
exact     what exact draws take beside the plain ones that they are made of
lora      a base mixed with an adapter on it against the base alone at twice the rows
startup   from the start of a process to its first tokens, with and without compilations kept
imports   processes that read results or give help, against `import jax`

With --serve, as many clients as --rows, at 8 strengths from 0 to 2:
serve     throughput of `eval.serve` and its clients' latency, against the same requests decoded
          offline, and against the pair behind FastAPI with `transformers` on torch

Times are of whole calls that end with tokens on the host; EOS is disabled. Each figure is a median
with its range over the repeats. Without torch its columns are left out.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dera_jax.commands.options.cli import Parser, announce_devices, check_file, command_line
from dera_jax.commands.options.decoding import unescape
from dera_jax.commands.options.models import model_names
from dera_jax.commands.process.endings import command, stopped_by_exceptions
from dera_jax.common.json_files import write_json
from dera_jax.common.provenance import provenance
from dera_jax.performance.bench import decoding_lines, serving_lines, sharing_lines, training_lines
from dera_jax.performance.bench.pairs import SHAPES, describe, load_pairs, sweep_prompts, title, torch_pair

SECTIONS = decoding_lines.SECTIONS
MODES = {"train": training_lines, "schedule": sharing_lines, "serve": serving_lines}
"""What is measured in place of decoding, by option."""
LINES = {name: line for lines in (decoding_lines, *MODES.values()) for name, line in lines.LINES.items()}
ONCE = ("sweep", "rlhf", "share", "refill", "startup", "imports")
"""Of the given pair alone."""


def make_parser() -> Parser:
    """Returns the command's options."""
    result = Parser("bench", __doc__)
    result.add_argument(
        "--reference", metavar="MODEL", help="with --aligned: the pair (default: the toy pair)"
    )
    result.add_argument("--aligned", metavar="MODEL")
    result.add_argument(
        "--shape", choices=(*SHAPES, "none"), default="15m", help="random Llama pair beside it (default 15m)"
    )
    result.add_argument(
        "--rows", default="1,8,32", metavar="N,N…", help="rows of a batch, or clients (default 1,8,32)"
    )
    result.add_argument("--new-tokens", type=int, default=128, metavar="N", help="of every row (default 128)")
    result.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default 5)")
    for mode, what in (("train", "training"), ("schedule", "sharing"), ("serve", "serving")):
        told = f"measure {what}: sections {','.join(MODES[mode].SECTIONS)}"
        result.add_argument(f"--{mode}", action="store_true", help=told)
    result.add_argument(
        "--sections",
        metavar="A,B…",
        help=f"(default: {','.join(SECTIONS)}; all of --train's, --schedule's or --serve's)",
    )
    result.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="of each prompt in `share` (default 1)"
    )
    result.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends completions in `share`; escapes such as \\n",
    )
    result.add_argument("--prompts", metavar="PROMPTS", help="of the sweep: its first 8 (default: the toy's)")
    result.add_argument("--no-torch", action="store_true", help="leave out the comparison with torch")
    result.add_argument("--out", type=Path, metavar="FILE.json", help="write every repeat")
    return result


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = make_parser().parse_args(argv)
    check_file("--out", args.out, ".json")
    modes = [mode for mode in MODES if getattr(args, mode)]
    if len(modes) > 1:
        given = " and ".join(f"--{mode}" for mode in modes)
        raise ValueError(f"expected one of --train, --schedule and --serve, found {given}")
    known = MODES[modes[0]].SECTIONS if modes else SECTIONS
    sections, rows, names = _chosen(args.sections, known), _counts(args.rows), _pair_names(args)
    if args.serve:
        serving_lines.check_installed()
    from dera_jax.performance.bench import sides, timing

    stop = tuple(map(unescape, args.stop))
    config = timing.BenchConfig(args.new_tokens, args.repeats, args.num_samples, stop)
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
    # Servers are ended before this process is.
    with stopped_by_exceptions() if args.serve else nullcontext(), tempfile.TemporaryDirectory() as folder:
        for number, policies in enumerate(load_pairs(names, args.shape, Path(folder) / "random")):
            report["models"].append(describe(policies))
            print(f"\n{title(report['models'][-1])}", flush=True)
            place = Path(folder) / str(number)
            # Random models have no language to sweep prompts in, nor lines to end.
            chosen = [section for section in sections if number == 0 or section not in ONCE]
            if args.train:
                model, counts = policies[-1], (config.new_tokens, config.repeats)
                found = training_lines.measure(chosen, model, *counts, with_torch, place, _progress)
            elif args.schedule:
                prompts = partial(sweep_prompts, args.prompts, policies)
                named = [name for name in names if name]
                found = sharing_lines.measure(
                    chosen, policies, named, prompts, config, _progress, random=number > 0
                )
            elif args.serve:
                found = serving_lines.measure(
                    chosen, policies, rows, config, with_torch, place, device, _progress
                )
            else:
                beside = torch_pair(policies, place, device) if with_torch else None
                found = decoding_lines.measure(
                    chosen, policies, rows, config, beside, args.prompts, _progress
                )
            for section, result in found:
                report[section].append(result)
                print(LINES[section](result), flush=True)
                save()


def _pair_names(args) -> tuple[str | None, str | None]:
    """Returns the reference and the aligned model; None and None stand for the toy pair."""
    reference, aligned = model_names(args)
    if aligned and len(aligned) > 1:
        raise ValueError(f"--aligned: expected one model, found {len(aligned)} in {args.aligned!r}")
    return reference, aligned and aligned[0]


def _torch_wanted(no_torch: bool, needed: Sequence[str]) -> bool:
    missing = [name for name in needed if find_spec(name) is None]
    if not no_torch and missing:
        print(f"{missing[0]} is not installed: the comparison with it is left out", file=sys.stderr)
        return False
    return not no_torch


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
