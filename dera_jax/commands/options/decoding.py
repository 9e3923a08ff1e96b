"""Options of commands that decode: how completions are drawn, by which rule, how many at a time."""

import argparse

from dera_jax.commands.process import streams
from dera_jax.common.checks import MOST
from dera_jax.common.choices import KV_CACHES
from dera_jax.decoding.config import DecodeConfig, rows_of


def add_decode_options(parser: argparse.ArgumentParser, max_new_tokens: int = 128) -> None:
    """Adds how completions are drawn."""
    defaults = DecodeConfig(max_new_tokens=max_new_tokens)
    group = parser.add_argument_group("decoding (of the mixture)")
    group.add_argument(
        "--rule",
        metavar="RULE",
        help="linear, the mixture of logits (the default), or module:function, a rule of your own",
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=defaults.max_new_tokens,
        metavar="N",
        help="longest completion, in tokens (default %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=defaults.temperature,
        metavar="T",
        help="0 is greedy (default %(default)s)",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="keep the K most probable tokens (default, and 0: all)"
    )
    group.add_argument(
        "--top-p", type=float, metavar="P", help="keep the smallest set with probability P (default: all)"
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end a completion at TEXT, escapes such as \n allowed; may be repeated",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        metavar="N",
        help="random seed (default %(default)s)",
    )
    group.add_argument(
        "--kv-cache",
        choices=KV_CACHES,
        default=defaults.kv_cache,
        help="how keys and values of earlier tokens are kept; int8 takes about a quarter of float32 "
        "(default auto: in the models' type)",
    )
    group.add_argument(
        "--rows", default="auto", metavar="N|auto", help="completions decoded at a time (default auto)"
    )


def decode_config(args: argparse.Namespace) -> DecodeConfig:
    """Returns the validated decoding options."""
    return DecodeConfig(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=tuple(map(unescape, args.stop)),
        seed=args.seed,
        kv_cache=args.kv_cache,
    )


def unescape(text: str) -> str:
    r"""Returns `text` with escapes such as \n replaced by what they stand for."""
    text = streams.as_text(text)
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise ValueError(f"--stop: broken escape in {text!r} ({error.reason})") from error


def parse_rows(text: str, cells: int) -> int:
    """Returns the rows of a batch: the number given, or for `auto` at most 32."""
    if text == "auto":
        return rows_of(text, cells)
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST):
        raise ValueError(
            f"--rows: expected a whole number, at least 1 and at most {MOST}, or auto, got {text!r:.40}"
        )
    return int(text)
