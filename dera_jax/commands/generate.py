"""Answers a prompt at several strengths, side by side, or many prompts one after the other.

  python -m eval.generate --prompt="Who helps Tom?" --lambda=0,0.5,1,2
  python -m eval.generate --interactive
  python -m eval.generate --chat

All strengths share their random numbers, so that completions differ because of the strength alone.
With --interactive each line of standard input is a prompt of its own, which does not see earlier
answers; /lambda 0,0.7 changes the strengths, and /quit or the end of input stops.
With --chat and no prompt it is a conversation: answers appear as they are drawn, their tokens
coloured by KL where the terminal has colours. /lambda 1.5 changes the strength, /both 0 1 answers
at two, of which the first goes on, /reset begins anew, and Ctrl-C ends an answer alone.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence

from tqdm import tqdm

from dera_jax.commands.options import cli, decoding, drawing, models
from dera_jax.commands.parts.lines import each_line
from dera_jax.commands.parts.side_by_side import side_by_side
from dera_jax.commands.parts.talking import talk
from dera_jax.commands.process import endings, streams
from dera_jax.common.checks import check_count
from dera_jax.common.shown import shown
from dera_jax.rules.known import load_rule

STRENGTHS = "0,0.5,1,2"


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.generate`."""
    args = make_parser().parse_args(argv)
    decode = decoding.decode_config(args)
    check_count("--num-samples", args.num_samples, most=10**4)
    if args.interactive and args.prompt is not None:
        raise ValueError("expected --prompt or --interactive, found both")
    if args.contrast is not None and args.prompt is None:
        raise ValueError("--contrast: expected --prompt beside it, found none")

    from dera_jax.data.prompts import with_settings
    from dera_jax.decoding.value_models import check_values
    from dera_jax.strengths import parse_strengths
    from dera_jax.sweeps.run import sweep

    _, aligned = models.model_names(args)

    def parsed(text: str) -> tuple:
        return parse_strengths(text, len(aligned or [1]))

    talks = args.chat and args.prompt is None and not args.interactive
    lambdas = parsed(args.lambda_ or ("1" if talks else STRENGTHS))
    prompt = _prompt(args.prompt, args.chat, args.contrast)
    rule = load_rule(args.rule)
    draw = drawing.draw_of(args, rule, len(aligned or [1]), answers=False)
    rows = args.rows if args.rows == "auto" else decoding.parse_rows(args.rows, 1)
    mesh = models.open_mesh(args)
    cli.announce_devices()
    policies = models.load_models(args, mesh=mesh)
    check_values(policies, rule.function)
    models.tell_raw(policies, not args.chat, "add --chat to use it")

    def answer(prompt, lambdas) -> None:
        settings = {"rows": rows, "rule": rule.function, "num_samples": args.num_samples, **vars(decode)}
        asked = with_settings(prompt, args.chat_template_kwargs)
        made = sweep(policies, [asked], lambdas, draw=draw, **settings)
        _show(_watched(made, len(lambdas) * args.num_samples), lambdas, args.num_samples)

    if talks:
        talk(args, policies, decode, rule.function, draw, lambdas, parsed)
    elif args.interactive:
        converse(lambda text, strengths: answer(_prompt(text, args.chat), strengths), lambdas, parsed)
    else:
        text = streams.as_text(args.prompt or prompt.text)
        print(f"prompt: {shown(text, keep=chr(10))}\n")
        if args.contrast is not None:
            print(f"the reference reads: {shown(streams.as_text(args.contrast), keep=chr(10))}\n")
        answer(prompt, lambdas)


def make_parser() -> cli.Parser:
    parser = cli.Parser("generate", __doc__)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="the prompt (default: the first prompt that ships with the toy pair)"
    )
    parser.add_argument(
        "--contrast",
        metavar="TEXT",
        help="what the reference reads in place of the prompt (default: the prompt)",
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="load the models once and answer every line of standard input",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="apply the chat template to the prompt; without one, have a conversation",
    )
    parser.add_argument(
        "--lambda",
        dest="lambda_",
        metavar="STRENGTHS",
        help=f"as in eval.sweep (default {STRENGTHS}; in a conversation 1)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        metavar="N",
        help="completions at each strength (default %(default)s)",
    )
    models.add_model_options(parser)
    decoding.add_decode_options(parser, draft="auto", prefix_cache="on")
    drawing.add_draw_option(parser)
    drawing.add_exact_options(parser)
    return parser


def _prompt(text: str | None, chat: bool, contrast: str | None = None):
    from dera_jax.common.usable import keep_usable
    from dera_jax.data.prompts import Prompt, load_prompts

    if text is None:
        return load_prompts("toy", 1)[0]

    def said(text: str) -> str | list[dict]:
        return [{"role": "user", "content": streams.as_text(text)}] if chat else streams.as_text(text)

    asked = {"messages" if chat else "prompt": said(text)}
    if contrast is not None:
        asked["contrast"] = said(contrast)
    ((prompt,), _) = keep_usable([asked], Prompt.of, lambda _: "--prompt")
    return prompt


def converse(answer: Callable[[str, tuple], None], lambdas: tuple, parsed: Callable[[str], tuple]) -> None:
    """Answers each line of standard input until it ends or says /quit; a line that is wrong ends nothing.

    Args:
      answer: told a prompt and the strengths.
      parsed: text to strengths.
    """

    def take(line: str) -> None:
        nonlocal lambdas
        command, _, rest = line.partition(" ")
        if command == "/lambda":
            lambdas = parsed(rest.strip())
        elif line.startswith("/"):
            raise ValueError(f"unknown command {command!r:.40}; expected /lambda STRENGTHS or /quit")
        elif line:
            answer(line, lambdas)

    each_line(take)


def _watched(rows: Iterable[dict], total: int) -> list[dict]:
    """Returns the rows, with progress on a terminal: the first one waits for the compiler."""
    with tqdm(
        total=total, unit="completion", postfix="compiling", leave=False, disable=None, dynamic_ncols=True
    ) as bar:
        found = []
        for row in rows:
            found.append(row)
            bar.set_postfix_str("", refresh=False)
            bar.update()
        return found


def _show(rows: Sequence[Mapping], lambdas: Sequence, samples: int) -> None:
    """Prints the completions of one prompt, a block for each sample."""
    from dera_jax.strengths import format_strength, strength_from_json

    found = {(row["sample"], strength_from_json(row["lambda"])): row for row in rows}
    for sample in range(samples):
        titled = {f"λ = {format_strength(each)}": found[sample, each] for each in lambdas}
        texts = {name: row["completion"] for name, row in titled.items()}
        notes = {name: _note(row) for name, row in titled.items()}
        print(side_by_side(texts, shutil.get_terminal_size().columns, notes), flush=True)


def _note(row: Mapping) -> str:
    """Returns what stands under a completion: its length, its distance, and whether it was cut off."""
    cut = "cut off at " if row["finish_reason"] == "length" else ""
    told = f"{cut}{row['length']} tokens, KL {row['kl_to_reference']:.2f} nats"
    if found := row.get("search"):
        told += f", chosen from {found['candidates']}: score {found['score']:.3g}"
        told += "" if found["runner_up"] is None else f", runner-up {found['runner_up']:.3g}"
    return f"[{told}]"
