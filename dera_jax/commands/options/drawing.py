"""The option of commands that decode: how a completion is drawn, at once or as the best of several candidates."""

import argparse

from dera_jax.commands.options import decoding
from dera_jax.rules.known import NamedRule
from dera_jax.search.notation import FORMS


def add_draw_option(parser: argparse.ArgumentParser) -> None:
    """Adds --draw."""
    parser.add_argument(
        "--draw",
        default="mixture",
        metavar="DRAW",
        help=f"mixture: one completion of the realigned policy (the default); {FORMS}: the best of several, at "
        "N (or 1 + MU) times the tokens. SCORE is a reward, value:DIR (a value head), log-ratio, or a sum such as "
        "length:40:60*2+log-ratio",
    )


def draw_of(args: argparse.Namespace, rule: NamedRule, aligned: int, answers: bool = True):
    """Returns what makes the completions, as the options have it.

    Args:
      aligned: how many aligned models there are.
      answers: whether a later prompt may continue an earlier one and its answer.

    Raises:
      ValueError: a draw or a score that is not there or is out of range, or a drafter that does not fit.
    """
    plain = decoding.draw_of(args, rule, aligned, answers)
    if args.draw == "mixture":
        return plain
    from dera_jax.search.best_of import parse_draw

    try:
        draw = parse_draw(args.draw, plain)
        draw.check((), aligned)
    except ValueError as error:
        raise type(error)(f"--draw: {error}") from None
    return draw
