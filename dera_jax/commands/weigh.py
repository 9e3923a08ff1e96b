"""Gives each prompt its own strength: models that predict it better weigh more, or a gate opens or
stays shut.

  python -m eval.weigh --prompts=FILE.jsonl --reference=DIR --aligned=A,B --out=weighed.jsonl
  python -m eval.sweep --prompts=weighed.jsonl --reference=DIR --aligned=A,B --lambda=prompt

The weights are softmax(−log PPL / τ), PPL the perplexity of each model on the prompt, the
reference's among them; τ is --temperature. FILE's prompts are written with `lambda`, the weights
of the aligned models, and `log_perplexity` of all models, the reference first. Of a conversation,
the first turn decides for all. With --method=greedy the models are mixed in one after the other,
the best first, each with the share (to 1/200) at which the mixture predicts the prompt best; the
shares of those before it stay in proportion.

  python -m eval.weigh --prompts=FILE.jsonl --reference=DIR --gate=STEER.safetensors --out=O.jsonl

--gate asks the gate of a steering file instead (eval.steer --gate), which reads the prompt in the
reference: `lambda` is --lambda where it opens, else 0.
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models
from dera_jax.commands.process import endings
from dera_jax.common.checks import check_count


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.weigh`."""
    parser = cli.Parser("weigh", __doc__)
    parser.add_argument(
        "--prompts",
        metavar="PROMPTS",
        help="as in eval.sweep (default: toy with the toy pair, else chat)",
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="use the first N prompts (default: all)")
    parser.add_argument(
        "--method",
        choices=("softmax", "greedy"),
        default="softmax",
        help="softmax of perplexities, or shares found one after the other (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="TAU",
        help="small: the best model alone; large: equal weights (default %(default)g)",
    )
    parser.add_argument(
        "--gate", metavar="FILE.safetensors", help="give strengths by the gate of a steering file"
    )
    parser.add_argument(
        "--lambda", dest="lambda_", default="1", metavar="STRENGTH",
        help="with --gate, the strength of prompts that it opens for (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rows", default="8", metavar="N", help="prompts read at a time (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="the prompts, weighed")
    models.add_model_options(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.weigh`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.out.suffix != ".jsonl":
        raise ValueError(f"--out: expected a name that ends in .jsonl, found {str(args.out)!r:.200}")
    cli.check_file("--out", args.out, ".jsonl")
    if args.prompts and Path(args.prompts).resolve() == args.out.resolve():
        raise ValueError(f"--out: expected another file than the prompts' own, found {str(args.out)!r:.200}")
    if not 0 < args.temperature < float("inf"):
        raise ValueError(f"--temperature: expected a number above 0, found {args.temperature:g}")
    idle = (
        dict.fromkeys(("--method", "--temperature"), "without --gate")
        if args.gate
        else {"--lambda": "with --gate"}
    )
    if args.method == "greedy":
        idle.setdefault("--temperature", "with --method=softmax")
    for name, needed in idle.items():
        if name in parser.given:
            raise ValueError(f"{name} has an effect {needed} only")
    if args.num_prompts is not None:
        check_count("--num-prompts", args.num_prompts)
    rows = decoding.parse_rows(args.rows, 8)
    if args.gate and args.aligned is None:
        args.aligned = args.reference  # no other model is read
    models.model_names(args)

    from dera_jax.commands.parts.gating import gated_prompts
    from dera_jax.commands.parts.weighing import weighed_prompts
    from dera_jax.common.files import write_bytes
    from dera_jax.common.json_files import encode_json
    from dera_jax.common.shown import shown
    from dera_jax.devices.processes import leads

    prompts, told = (gated_prompts if args.gate else weighed_prompts)(args, rows)
    if not leads():
        return
    write_bytes(args.out, b"".join(encode_json(prompt) + b"\n" for prompt in prompts))
    print(told)
    print(f"\n{shown(args.out, 200)}: {len(prompts)} prompts with `lambda`")
