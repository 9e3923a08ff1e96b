"""Answers one prompt at several strengths, side by side.

  python -m eval.generate --prompt="Once upon a time" --lambda=0,0.5,1,2

All strengths share their random numbers: what differs is the strength.
"""

import shutil
import textwrap
from collections.abc import Sequence

from dera_jax.commands import cli, decode_options, models
from dera_jax.configs import check_count

NARROWEST = 28
"""Columns of text narrower than this are not read with pleasure."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.generate`."""
    parser = cli.Parser(__doc__, prog="python -m eval.generate")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="what to continue (default: the first shipped prompt)"
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt through the chat template")
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        default="0,0.5,1,2",
        metavar="STRENGTHS",
        help="as in eval.sweep (default %(default)s)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        metavar="N",
        help="completions at each strength (default %(default)s)",
    )
    models.add_model_options(parser)
    decode_options.add_decode_options(parser)
    args = parser.parse_args(argv)
    decode = decode_options.decode_config(args)
    check_count("--num-samples", args.num_samples)

    from dera_jax.prompts import Prompt, load_prompts
    from dera_jax.strengths import format_strength, parse_strengths, strength_from_json
    from dera_jax.sweep import sweep
    from dera_jax.usable import keep_usable

    _, aligned = models.model_names(args)
    lambdas = parse_strengths(args.lambda_, len(aligned or [1]))
    if args.prompt is None:
        prompt = load_prompts("toy", 1)[0]
    else:
        turn = [{"role": "user", "content": args.prompt}]
        asked = {"messages": turn} if args.chat else args.prompt
        ((prompt,), _) = keep_usable([asked], Prompt.of, lambda _: "--prompt")
    rule, _ = decode_options.load_rule(args.rule)
    rows = decode_options.parse_rows(args.rows, len(lambdas) * args.num_samples)
    mesh = models.open_mesh(args)
    cli.announce_devices()
    policies = models.load_models(args, mesh=mesh)
    found = list(
        sweep(policies, [prompt], lambdas, rows=rows, rule=rule, num_samples=args.num_samples, **vars(decode))
    )
    print(f"prompt: {args.prompt or prompt.text}\n")
    completions = {(row["sample"], strength_from_json(row["lambda"])): row["completion"] for row in found}
    for sample in range(args.num_samples):
        texts = {f"λ = {format_strength(s)}": completions[sample, s] for s in lambdas}
        print(side_by_side(texts, shutil.get_terminal_size().columns))


def side_by_side(texts: dict[str, str], width: int) -> str:
    """Returns titled texts in as many columns as fit into `width` characters, the rest below."""
    per_row = max(1, min(len(texts), (width + 3) // (NARROWEST + 3)))
    column = (width - 3 * (per_row - 1)) // per_row
    titles = list(texts)
    blocks = []
    for start in range(0, len(titles), per_row):
        names = titles[start : start + per_row]
        wrapped = [_wrap(texts[name], column) for name in names]
        height = max(map(len, wrapped))
        lines = [[name, "─" * column] for name in names]
        lines = [head + body + [""] * (height - len(body)) for head, body in zip(lines, wrapped, strict=True)]
        blocks.append(
            "\n".join(
                " │ ".join(cell.ljust(column) for cell in row).rstrip() for row in zip(*lines, strict=True)
            )
        )
    return "\n\n".join(blocks) + "\n"


def _wrap(text: str, width: int) -> list[str]:
    # A model may draw any character, those that steer a terminal too.
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    paragraphs = text.strip().split("\n")
    return [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, width) or [""]]
