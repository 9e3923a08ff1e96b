"""Dials beside λ: `--sweep=DIAL=values`, and a weight for each of `--models`.

A dial of the rule, or the strength of --steer, gives a run for each value; a letter in --weights gives strengths.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from dera_jax.commands.options.steering import read_steer, with_strength
from dera_jax.common.shown import shown
from dera_jax.rules.known import NamedRule, load_rule, with_dial
from dera_jax.strengths import as_strengths, format_strength

STEER = "steer"
"""The dial that is the strength of --steer."""
TERM = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)?(?:/(\d+))?\*?([A-Za-z]\w*)?", re.ASCII)
"""A number, a letter, or a number of them: 1, -a, 0.5b."""


class Swept(NamedTuple):
    """What --sweep names."""

    name: str
    values: tuple[float, ...]


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """Adds several models with a weight each, and dials."""
    group = parser.add_argument_group("several models, dials")
    group.add_argument(
        "--models",
        action=_Models,
        metavar="MODEL,MODEL[,MODEL…]",
        help="another way to write --reference=MODEL --aligned=MODEL[,MODEL…]",
    )
    group.add_argument(
        "--weights",
        metavar="W,W[,W…]",
        help="a weight for each model, the reference first, in the place of --lambda: numbers that sum to 1, or with "
        "letters, 1,a,-a, whose values --sweep tells",
    )
    group.add_argument(
        "--sweep",
        action=_Once,
        metavar="DIAL=VALUES",
        help="values of a dial of --rule, alpha=0,0.1,0.3, or of the strength of --steer, steer=0,1, each a run in a "
        "folder of its own in --out; or of a letter in --weights",
    )


class _Once(argparse.Action):
    """Stores a value and refuses a second one."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string}: expected it once, found a second, {shown(values, 80)}")
        setattr(namespace, self.dest, values)


class _Models(argparse.Action):
    """Sets the reference and the aligned models."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from dera_jax.policies.hub import split_models

        names = split_models(values)
        if len(names) < 2 or not all(names):
            parser.error(f"--models: expected two models or more, found {shown(values, 80)}")
        if {"--reference", "--aligned"} & parser.given:
            parser.error("--models: expected no --reference and no --aligned beside it")
        namespace.reference, namespace.aligned = names[0], ",".join(names[1:])


def read_dial(text: str) -> Swept:
    """Returns the dial that --sweep names, and its values.

    >>> read_dial("alpha=0:0.2:0.1")
    Swept(name='alpha', values=(0.0, 0.1, 0.2))

    Raises:
      ValueError: no name or no numbers.
    """
    name, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
        raise ValueError(f"--sweep: expected DIAL=VALUES such as alpha=0,0.1,0.3, found {shown(text, 80)}")
    return Swept(name, tuple(value for (value,) in as_strengths(values, 1, f"--sweep={name}")))


def strengths_of(weights: str, models: int, dial: Swept | None) -> str:
    """Returns --lambda as --weights and --sweep tell it.

    The mixture's weights sum to 1, so those of the aligned models tell the reference's.

    >>> strengths_of("1,a,-a", 3, Swept("a", (0.0, 0.5)))
    '0+0,0.5+-0.5'

    Raises:
      ValueError: other numbers of weights, a letter without values, or weights that do not sum to 1.
    """
    told = [_linear(text, weights) for text in weights.split(",")]
    if len(told) != models:
        raise ValueError(f"--weights: expected one for each of {models} models, found {len(told)}")
    letters = sorted({letter for _, _, letter in told if letter})
    name = None if dial is None else dial.name
    if len(letters) > 1 or letters != [name] * len(letters):
        expected = f"the letter of --sweep={name}" if name else "numbers, or --sweep=LETTER=VALUES"
        raise ValueError(f"--weights: expected {expected}, found {', '.join(letters)}")
    constant, slope = sum(each[0] for each in told), sum(each[1] for each in told)
    if constant != 1 or slope:
        found = f"{constant}" if not slope else f"{constant} + {slope} {letters[0]}"
        raise ValueError(
            f"--weights: expected a sum of 1, found {found}; weights that sum to s are the same divided by s, at "
            "--temperature=1/s"
        )
    values = dial.values if dial and letters else (0.0,)
    rows = [[float(c + s * Fraction(repr(value))) for c, s, _ in told[1:]] for value in values]
    return ",".join(format_strength(tuple(row)) for row in rows)


def _linear(text: str, weights: str) -> tuple[Fraction, Fraction, str | None]:
    """Returns the constant and the slope of a weight such as 1-a, and its letter."""
    constant, slope, letters = Fraction(0), Fraction(0), set()
    rest = text.replace(" ", "")
    while rest:
        found = TERM.match(rest)
        if not found or not (found[2] or found[4]) or not (found[1] or rest == text.replace(" ", "")):
            raise ValueError(f"--weights: expected numbers such as 0.5, or 1-a, found {shown(weights, 80)}")
        try:
            size = Fraction(found[2] or 1) / Fraction(found[3] or 1) * (-1 if found[1] == "-" else 1)
        except ZeroDivisionError:
            raise ValueError(f"--weights: {shown(text, 80)} is not a finite number") from None
        if found[4]:
            slope, letters = slope + size, letters | {found[4]}
        else:
            constant += size
        rest = rest[found.end() :]
    if not text.strip() or len(letters) > 1:
        raise ValueError(f"--weights: expected one number or letter in each, found {shown(weights, 80)}")
    return constant, slope, next(iter(letters), None)


def take_weights(args: argparse.Namespace, parser) -> Swept | None:
    """Puts --weights in the place of --lambda; returns the dial of --sweep where the rule has it.

    Raises:
      ValueError: as `strengths_of`; --lambda beside --weights.
    """
    dial = None if args.sweep is None else read_dial(args.sweep)
    if args.weights is None:
        return dial
    if "--lambda" in parser.given:
        raise ValueError("--weights: expected no --lambda beside it, which tells the same")
    from dera_jax.commands.options.models import model_names

    _, aligned = model_names(args)
    of_weights = dial is not None and bool(re.search(r"[A-Za-z]", args.weights))
    args.lambda_ = strengths_of(args.weights, 1 + len(aligned or [1]), dial if of_weights else None)
    return None if of_weights else dial


def plain_words(words: Sequence[str], args: argparse.Namespace, parser) -> list[str]:
    """Returns the words of a command line with --models and --weights as the options that they stand for."""
    from dera_jax.analysis.tuning.retraining import replaced

    plain: dict[str, str | None] = {}
    if "--models" in parser.given:
        plain |= {"models": None, "reference": args.reference, "aligned": args.aligned}
    if "--weights" in parser.given:
        plain |= {"weights": None, "lambda": args.lambda_}
    if "--sweep" in parser.given:
        plain |= {"sweep": None}
    return replaced(words, plain)


class Value(NamedTuple):
    """One value of a dial: the folder of its run, the options that alone would give it, and what it makes of a plan."""

    folder: str
    options: dict[str, str | None]
    of: Callable


def values_of(args: argparse.Namespace, dial: Swept) -> list[Value]:
    """Returns the values of a dial of the rule, or of `steer`, the strength of --steer, which is taken out of `args`.

    Raises:
      ValueError: no rule has the dial, a value is out of range, or nothing is steered.
    """
    texts = [format_strength((value,)) for value in dial.values]
    if dial.name == STEER:
        return _steered(args, dial, texts)
    rules = [load_rule(with_dial(args.rule, dial.name, text)) for text in texts]
    return [
        Value(f"{dial.name}={text}", {"rule": rule.name}, partial(_with_rule, rule))
        for text, rule in zip(texts, rules, strict=True)
    ]


def _with_rule(rule: NamedRule, plan):
    return replace(plan, rule=rule)


def _steered(args: argparse.Namespace, dial: Swept, texts: list[str]) -> list[Value]:
    from dera_jax.commands.options.models import model_names

    if args.steer is None:
        raise ValueError("--sweep=steer: expected --steer=FILE, whose strength it is")
    reference, aligned = model_names(args)
    files = [with_strength(args.steer, value) for value in dial.values]
    steering = [read_steer(text, len(aligned or [1])) for text in files]
    if aligned:
        args.reference, args.aligned = reference, ",".join(aligned)
    args.steer = None

    def steered(steer: Sequence[Callable], plan):
        first, *others = plan.policies
        others = [each(policy) for each, policy in zip(steer, others, strict=True)]
        return replace(plan, policies=(first, *others), beta=args.beta)

    return [
        Value(f"{STEER}={text}", {"steer": file}, partial(steered, steer))
        for text, file, steer in zip(texts, files, steering, strict=True)
    ]
