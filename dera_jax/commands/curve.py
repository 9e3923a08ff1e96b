"""Draws one smooth curve over λ from the completions of a few strengths.

  python -m eval.curve RUN                           from a sweep that is there
  python -m eval.curve RUN RUN2                      from two, with other seeds
  python -m eval.curve --reference=DIR --aligned=DIR --prompts=FILE.jsonl    from its own, at λ = 0, 1/2 and 1
  python -m eval.curve RUN --per-token

Every completion is a sample for every strength, with the weight that it has there. The curve is that of whole
responses, π_ref(y)^(1−λ) π_al(y)^λ (Eq. 5), of which the realigned policy is the approximation token by token; with
--per-token it is that of the realigned policy itself, as a sweep of all strengths would show it. It is drawn
where at least 10 % of the completions carry the weight, grey elsewhere.

Written are curve.csv, curve.json and curve.png, in the run's folder (the first of several) or in --out. eval.tune takes
curve.json for a strength between those that were decoded.
"""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models, sweeping
from dera_jax.commands.process import endings
from dera_jax.search.notation import LIMIT_MEANS

FARTHEST = 100
"""Of a curve's strengths from 0."""
DEFAULTS = {"strengths": "0,0.5,1", "num_samples": 4}
"""Of a curve's own sweep."""


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.curve`."""
    parser = cli.Parser("curve", __doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="sweeps of the same models and prompts, each a folder or its rows.jsonl[.gz|.xz]; without any, prompts "
        "are decoded first",
    )
    parser.add_argument(
        "--grid",
        metavar="STRENGTHS",
        help="strengths of the curve, a list or start:stop:step (default: steps of 0.02, from the smallest strength "
        "that was decoded to half a range beyond the largest)",
    )
    parser.add_argument(
        "--limit-means",
        choices=LIMIT_MEANS,
        default="ended",
        help="the law of completions that end within --max-new-tokens (ended), or with those that it cuts off as "
        "members (absorb) (default %(default)s)",
    )
    parser.add_argument(
        "--per-token",
        action="store_true",
        help="the realigned policy's own law, whose cut completions are members",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="use a run that is not complete, with a warning"
    )
    group = parser.add_argument_group("its own sweep, without RUN")
    sweeping.add_sweep_options(group, **DEFAULTS)
    models.add_model_options(parser)
    decoding.add_decode_options(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.curve`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    grid = _grid(args.grid)
    command = cli.command_line("eval.curve", argv)
    if args.runs:
        sweeping.refuse_own(args, parser, AGAIN)
        from dera_jax.commands.parts.curve import curve_of_runs

        curve_of_runs(args, grid, command)
    else:
        from dera_jax.commands.parts.curve import curve_of_sweep

        curve_of_sweep(sweeping.of_plain_draw(args), args, grid, command)


AGAIN = (
    "runs", "grid", "limit_means", "per_token", "allow_missing", "out", "reference", "aligned", "dtype", "rows", "mesh",
)  # fmt: skip
"""Options that have a meaning with RUN: the rows are read by the models once more."""


def _grid(text: str | None) -> list[float] | None:
    from dera_jax.strengths import parse_strengths

    if text is None:
        return None
    try:
        grid = [strength for (strength,) in parse_strengths(text, 1)]
    except ValueError as error:
        raise ValueError(str(error).replace("--lambda: ", "--grid: ")) from None
    if far := [strength for strength in grid if abs(strength) > FARTHEST]:
        raise ValueError(f"--grid: expected strengths from {-FARTHEST} to {FARTHEST}, found {far[0]:g}")
    return grid
