"""The option of commands that decode: how a completion is drawn, at once or as the best of several candidates."""

import argparse
from dataclasses import replace

from dera_jax.commands.options import decoding
from dera_jax.common.shown import shown
from dera_jax.rules.known import NamedRule
from dera_jax.search.notation import EXACT, LIMIT_MEANS, SEARCHES


def add_draw_option(parser: argparse.ArgumentParser) -> None:
    """Adds --draw."""
    parser.add_argument(
        "--draw",
        default="mixture",
        metavar="DRAW",
        help="mixture: one completion of the realigned policy (the default); exact, particles:N, metropolis:N: one of "
        "the response-level optimum that it approximates (docs/guides/exact-realignment.md); or a search among several "
        f"candidates: {SEARCHES}. SCORE is a reward, value:DIR (a value head), log-ratio, logprob, "
        "reference-logprob, or a sum such "
        "as length:40:60*2+log-ratio; what the letters mean and what it costs: docs/guides/guided-search.md",
    )


def add_exact_options(parser: argparse.ArgumentParser) -> None:
    """Adds --limit-means and --max-tries."""
    parser.add_argument(
        "--limit-means",
        choices=LIMIT_MEANS,
        help="of --draw=exact, particles and metropolis: the law of completions that end within --max-new-tokens "
        "(ended, the default), or with those that it cuts off as members (absorb)",
    )
    parser.add_argument(
        "--max-tries",
        type=int,
        metavar="N",
        help="of --draw=exact: completions that are begun for one, at most; if none is accepted the last is kept "
        "and said to be no exact draw (default 1000)",
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
    if args.draw.partition(":")[0] in EXACT:
        if trace:
            raise ValueError(f"--trace: expected a --draw that chooses among candidates, found {args.draw}")
        return _exact(args, plain, aligned)
    for name in ("limit_means", "max_tries"):
        if getattr(args, name) is not None:
            expected = "expected --draw=exact, particles:N or metropolis:N"
            raise ValueError(f"--{name.replace('_', '-')}: {expected}, found {shown(args.draw, 80)}")
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


def _exact(args: argparse.Namespace, plain, aligned: int):
    """Returns the draw from the response-level optimum that the options ask for."""
    from dera_jax.exact.parsing import parse_exact

    given = {
        name: value for name in ("limit_means", "max_tries") if (value := getattr(args, name)) is not None
    }
    if args.draw != "exact" and "max_tries" in given:
        raise ValueError(f"--max-tries: expected --draw=exact, found {shown(args.draw, 80)}")
    try:
        draw = parse_exact(args.draw, **given, plain=plain)
        draw.check((), aligned)
    except ValueError as error:
        told = str(error)
        if told.startswith("max_tries: "):
            raise ValueError(f"--{told.replace('_', '-', 1)}") from None
        raise ValueError(f"--draw: {told}") from None
    return draw
