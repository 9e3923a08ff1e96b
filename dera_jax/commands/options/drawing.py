"""The option of commands that decode: how a completion is drawn, at once or as the best of several candidates."""

import argparse
from dataclasses import replace

from dera_jax.commands.options import decoding
from dera_jax.rules.known import NamedRule
from dera_jax.search.notation import FORMS


def add_draw_option(parser: argparse.ArgumentParser) -> None:
    """Adds --draw."""
    parser.add_argument(
        "--draw",
        default="mixture",
        metavar="DRAW",
        help="mixture: one completion of the realigned policy (the default); or a search among several candidates: "
        f"{FORMS}. SCORE is a reward, value:DIR (a value head), log-ratio, logprob, reference-logprob, or a sum such "
        "as length:40:60*2+log-ratio; what the letters mean and what it costs: docs/guides/guided-search.md",
    )


def add_trace_option(parser: argparse.ArgumentParser) -> None:
    """Adds --trace."""
    parser.add_argument(
        "--trace",
        action="store_true",
        help="keep every candidate of every decision of a --draw in its row, for eval.plot --trace",
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
    trace = getattr(args, "trace", False)
    if args.draw == "mixture":
        if trace:
            raise ValueError("--trace: expected a --draw that chooses among candidates, found mixture")
        return plain
    from dera_jax.search.parsing import parse_draw

    try:
        draw = replace(parse_draw(args.draw, plain), trace=trace)
        draw.check((), aligned)
    except ValueError as error:
        raise type(error)(f"--draw: {error}") from None
    return draw
