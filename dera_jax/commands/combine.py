"""Writes the weight-combined model of a pair, θ = (1 − λ) θ_reference + λ θ_aligned.

  python -m eval.combine --reference=DIR --aligned=DIR --lambda=0.5 --out=DIR

One model of ordinary size, to compare with realignment at the same λ. `transformers` loads it.
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, models
from dera_jax.commands.process import endings


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.combine`."""
    parser = cli.Parser("combine", __doc__)
    parser.add_argument(
        "--lambda", dest="lambda_", required=True, metavar="STRENGTH", help="one strength, as in eval.sweep"
    )
    parser.add_argument(
        "--method", default="linear", choices=("linear", "slerp"),
        help="slerp turns each tensor along the great circle between the two (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new model")
    models.add_pair_options(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.combine`."""
    args = make_parser().parse_args(argv)

    from dera_jax.common.provenance import provenance
    from dera_jax.common.shown import shown
    from dera_jax.policies.combine import check_architectures, check_free, combine, open_folder
    from dera_jax.policies.save import save_policy
    from dera_jax.strengths import format_strength, parse_strengths, strength_to_json

    reference, aligned = models.model_names(args)
    strengths = parse_strengths(args.lambda_, len(aligned or [1]))
    if len(strengths) != 1:
        raise ValueError(f"--lambda: expected one strength, found {len(strengths)} in {args.lambda_!r}")
    cli.check_folder(args.out)
    check_free(args.out)
    if reference:
        check_architectures([reference, *aligned])
    cli.announce_devices()
    policies = models.load_models(args, as_stored=True)
    made = combine(policies, strengths[0], args.method)
    facts = {
        "method": args.method,
        "lambda": strength_to_json(strengths[0]),
        "models": [{"name": p.name, "fingerprint": p.fingerprint} for p in policies],
        "provenance": provenance(cli.command_line("eval.combine", argv)),
    }
    with open_folder(args.out, facts):
        save_policy(made, args.out, facts | {"finished": True})
    told = f"{args.method} combination of {len(policies)} models at λ = {format_strength(strengths[0])}"
    print(f"{shown(args.out)}: {told}")
