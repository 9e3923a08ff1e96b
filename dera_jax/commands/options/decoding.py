"""Options of commands that decode: how completions are drawn, by which rule, how many at a time."""

import argparse

from dera_jax.commands.options.settings import Help, add_settings, read_settings
from dera_jax.commands.process import streams
from dera_jax.common.checks import MOST
from dera_jax.decoding.config import DecodeConfig, DrawConfig, rows_of
from dera_jax.training.config import RolloutConfig

HELP: Help = {
    "max_new_tokens": ("N", "longest completion, in tokens (default %(default)s)"),
    "temperature": ("T", "0 is greedy (default %(default)s)"),
    "top_k": ("K", "keep the K most probable tokens (default, and 0: all)"),
    "top_p": ("P", "keep the smallest set with probability P (default: all)"),
    "stop": ("TEXT", r"end a completion at TEXT, escapes such as \n allowed; may be repeated"),
    "seed": ("N", "random seed (default %(default)s)"),
    "kv_cache": (
        None,
        "how keys and values of earlier tokens are kept; int8 takes about a quarter of float32 "
        "(default auto: in the models' type)",
    ),
}
"""Settings of `DecodeConfig`."""
ROLLOUTS: Help = {
    "num_samples": ("N", "of each prompt in a step (default %(default)s)"),
    "max_new_tokens": HELP["max_new_tokens"],
    "stop": HELP["stop"],
    "temperature": ("T", "of sampling (default %(default)s, which is on-policy)"),
}
"""Settings of `RolloutConfig`, and of how its completions are drawn."""


DRAFT: Help = {
    "draft": (
        None,
        "who drafts tokens ahead, which the mixture then checks several at a time: the reference, the aligned model, "
        "or what followed the last tokens before (ngram). The text is the same; auto drafts where it is faster and no "
        "strengths share rows (default %(default)s)",
    ),
    "draft_length": ("N", "tokens drafted at a time (default %(default)s)"),
}
"""Settings of `DrawConfig`."""


def add_decode_options(
    parser: argparse.ArgumentParser, draft: str = "none", prefix_cache: str = "off"
) -> None:
    """Adds how completions are drawn.

    Args:
      draft: the default of the option of that name; so is `prefix_cache`.
    """
    group = parser.add_argument_group("decoding (of the mixture)")
    group.add_argument(
        "--rule",
        metavar="RULE",
        help="linear, the mixture of logits (the default), or module:function, a rule of your own",
    )
    add_settings(group, DecodeConfig, HELP)
    group.add_argument(
        "--share",
        choices=("on", "off"),
        default="on",
        help="strengths of a prompt and sample share a row while they draw the same tokens; off gives the same "
        "rows (default %(default)s)",
    )
    add_settings(group, DrawConfig, DRAFT, leave_out=("share",), draft=draft)
    group.add_argument(
        "--prefix-cache",
        choices=("on", "off"),
        default=prefix_cache,
        help="prompts go on from the caches of earlier ones that begin alike; on gives the same rows except for "
        "rounding (default %(default)s)",
    )
    group.add_argument(
        "--rows", default="auto", metavar="N|auto", help="completions decoded at a time (default auto)"
    )


def add_rollout_options(parser: argparse.ArgumentParser) -> None:
    """Adds how the completions are drawn that a policy is trained on."""
    group = parser.add_argument_group("completions")
    elsewhere = "decode", "beta", "target_kl", "horizon", "seed"
    fixed = "top_k", "top_p", "kv_cache"  # on-policy
    add_settings(group, (RolloutConfig, DecodeConfig), ROLLOUTS, leave_out=(*elsewhere, *fixed))


def decode_config(args: argparse.Namespace, **given) -> DecodeConfig:
    """Returns the validated decoding options; settings that are given come first."""
    return read_settings(args, DecodeConfig, stop=tuple(map(unescape, args.stop)), **given)


def draw_of(args: argparse.Namespace, answers: bool = True):
    """Returns what makes the completions, as the options have it.

    Args:
      answers: whether what a later prompt begins with may be an earlier one's with its answer.
    """
    from dera_jax.decoding.complete import MixtureDraw
    from dera_jax.decoding.prefix_cache import PrefixCache

    prefixes = PrefixCache(answers=answers) if args.prefix_cache == "on" else None
    return read_settings(args, MixtureDraw, share=args.share == "on", prefixes=prefixes)


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
