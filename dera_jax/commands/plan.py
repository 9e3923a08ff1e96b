"""Plans a run on a TPU that you do not have: does it fit, how fast, what would be enough.

  python -m eval.plan --reference=mistral-7b --aligned=mistral-7b --topology=v5e:2x4 --rows=16 --context=2048

Compiles prefill and decoding, or a training step, with the real TPU compiler (libtpu; no TPU is needed) from
configurations alone: no weights are read. A MODEL is a folder, a hub id or a known size; any may end in
+lora:RANK. Bytes are counted in the compiled program. Times are the longer of bytes over the memory's
bandwidth and operations over the chip's peak: what a perfect schedule would take.
"""

import argparse
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dera_jax.commands.options import cli, models
from dera_jax.commands.process import endings
from dera_jax.common.checks import MOST
from dera_jax.common.choices import KV_CACHES
from dera_jax.performance.plan.chips import CHIPS
from dera_jax.performance.plan.table import as_json, table_lines

SIZES = (
    "mistral-7b llama-2-7b llama-3.2-1b llama-3.1-8b llama-3.1-70b qwen2.5-0.5b qwen2.5-7b gemma-2-2b gemma-2-9b"
).split()
"""Names of `policies.sizes.SIZES`, for --help, which does not wait for JAX."""


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.plan`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    cli.check_file("--out", args.out, ".json")

    from dera_jax.common.json_files import write_json
    from dera_jax.performance.plan.chips import parse_slice
    from dera_jax.performance.plan.plan import Question, plan

    slice_ = parse_slice(args.topology)
    question = Question(
        sized=_models(args),
        slice_=slice_,
        mesh=_mesh(args.mesh),
        rows=_count("--rows", args.rows),
        context=args.context,
        new_tokens=args.max_new_tokens or (args.context // 2 if args.train else 128),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        train=args.train,
        accumulation=args.gradient_accumulation_steps,
    )
    with _Clock() as clock:
        found = plan(question, not args.no_search, clock.start)
    for line in table_lines(found):
        print(line)
    if args.out:
        write_json(args.out, as_json(found))


class _Clock:
    """Says what is being compiled, and every now and then that it goes on."""

    EVERY = 30
    """Seconds."""

    def __enter__(self) -> "_Clock":
        self._ended = threading.Event()
        self._started = time.monotonic()
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def start(self, text: str) -> None:
        """Says what begins."""
        print(f"{text} (minutes for models of billions of parameters)", file=sys.stderr)

    def _tick(self) -> None:
        while not self._ended.wait(self.EVERY):
            print(f"  … {time.monotonic() - self._started:.0f} s, still compiling", file=sys.stderr)


def make_parser() -> cli.Parser:
    epilog = (
        f"known sizes: {', '.join(SIZES)}; chips: {', '.join(CHIPS)} (TPUs; other devices are not planned)"
    )
    parser = cli.Parser("plan", __doc__, epilog="\n".join(textwrap.wrap(epilog, 95)))
    models.add_pair_options(parser)
    parser.set_defaults(dtype="bfloat16")
    parser.add_argument(
        "--quantize", metavar="int8|nf4", help="linear maps in 8 or 4 bits; or one for each model"
    )
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--topology", default="v5e:2x4", metavar="SLICE",
        help="chips and their grid, v5e:2x4, or a name in the cloud, v5litepod-8 (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--mesh", metavar="data:N,model:M",
        help="devices to split rows and parameters over (default: parameters over as many as divide the "
        "key-value heads)",
    )  # fmt: skip
    group.add_argument(
        "--rows",
        default="16",
        metavar="N",
        help="completions at a time, or pairs in a batch (default %(default)s)",
    )
    group.add_argument(
        "--context", type=int, default=2048, metavar="N",
        help="tokens of prompt and completion (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help="tokens of the completion (default 128; of training, half the context)",
    )  # fmt: skip
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K most probable tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the smallest set with probability P")
    group.add_argument(
        "--kv-cache", choices=KV_CACHES, default="auto",
        help="how keys and values are kept while decoding (default auto: in --dtype)",
    )  # fmt: skip
    group.add_argument(
        "--train", choices=("dpo",), help="plan a training step of the aligned model (the reference, if none)"
    )
    group.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, about a third more time"
    )
    group.add_argument(
        "--gradient-accumulation-steps", type=int, default=1, metavar="N",
        help="parts of a training batch, one after the other (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--no-search", action="store_true",
        help="leave out the largest number of rows and the smallest slice, which take a few compilations more",
    )  # fmt: skip
    group.add_argument("--out", type=Path, metavar="FILE.json", help="write what was found")
    return parser


def _models(args: argparse.Namespace) -> tuple:
    from dera_jax.policies.policy import TOY
    from dera_jax.policies.sizes import read_size

    dtype = "bfloat16" if args.dtype == "auto" else args.dtype
    if args.train and (args.reference or args.aligned):
        names = [args.aligned or args.reference]
    else:
        reference, aligned = models.model_names(args)
        names = [reference, *aligned] if reference else [str(TOY / "reference"), str(TOY / "aligned")]
        names = names[-1:] if args.train else names
    kinds = models.parse_quantize(args.quantize, len(names))
    sized = [read_size(name, dtype, kind) for name, kind in zip(names, kinds, strict=True)]
    changed = {"kv_cache": args.kv_cache, "remat": args.gradient_checkpointing}
    return tuple(replace(each, config=replace(each.config, **changed)) for each in sized)


def _mesh(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    from dera_jax.devices.mesh import parse_sizes

    sizes = parse_sizes(text)
    if sizes is None:
        raise ValueError(f"--mesh: expected data:N,model:M, got {text!r}")
    return sizes


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST):
        raise ValueError(f"{name}: expected a whole number, at least 1 and at most {MOST}, got {text!r:.40}")
    return int(text)
