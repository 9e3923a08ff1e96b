"""Options of commands that decode: how completions are drawn, by which rule, how many at a time."""

import argparse
from collections.abc import Collection

from dera_jax.commands.options.settings import Help, add_settings, read_settings
from dera_jax.commands.process import streams
from dera_jax.common.checks import MOST
from dera_jax.decoding.config import DecodeConfig, DrawConfig, rows_of
from dera_jax.rules.catalogue import listed
from dera_jax.rules.known import NamedRule
from dera_jax.training.config import RolloutConfig

HELP: Help = {
    "max_new_tokens": ("N", "longest completion, in tokens (default %(default)s)"),
    "temperature": ("T", "sampling temperature; 0 is greedy (default %(default)s)"),
    "top_k": ("K", "keep the K most probable tokens (default, and 0: all)"),
    "top_p": ("P", "keep the smallest set with probability P (default: all)"),
    "stop": ("TEXT", r"end a completion at TEXT, escapes such as \n allowed; may be repeated"),
    "seed": ("N", "random seed (default %(default)s)"),
    "kv_cache": (
        None,
        "type of the cached keys and values; int8 takes about a quarter of the memory of float32 "
        "(default auto: the type of the models)",
    ),
}
"""Settings of `DecodeConfig`."""
ROLLOUTS: Help = {
    "num_samples": ("N", "completions of each prompt in a step (default %(default)s)"),
    "max_new_tokens": HELP["max_new_tokens"],
    "stop": HELP["stop"],
    "temperature": ("T", "sampling temperature (default %(default)s, which is on-policy)"),
}
"""Settings of `RolloutConfig`, and of how its completions are drawn."""


DRAFT: Help = {
    "draft": (
        None,
        "speculative decoding: the reference, the aligned model or the text so far (ngram) drafts tokens, which are "
        "checked several at a time; the text stays the same. auto drafts where that is faster and no strengths share "
        "rows (default %(default)s)",
    ),
    "draft_length": ("N", "number of tokens in a draft (default %(default)s)"),
}
"""Settings of `DrawConfig`."""


class _Rule(argparse.Action):
    """Takes a rule; `list` prints all and ends the command."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if values == "list":
            print(listed())
            parser.exit()
        setattr(namespace, self.dest, values)


def add_decode_options(
    parser: argparse.ArgumentParser,
    draft: str = "none",
    prefix_cache: str = "off",
    leave_out: Collection[str] = (),
) -> None:
    """Adds how completions are drawn.

    Args:
      draft: the default of the option of that name; so is `prefix_cache`.
      leave_out: options that the command has no use of.
    """
    group = parser.add_argument_group("decoding (of the mixture)")
    group.add_argument(
        "--rule",
        metavar="RULE",
        action=_Rule,
        help="what makes one model's logits of all models' (default: linear, the mixture): NAME[:key=value,…], several "
        "joined by +; list prints them; or module:function, your own rule",
    )
    shown = {name: told for name, told in HELP.items() if name not in leave_out}
    add_settings(group, DecodeConfig, shown, leave_out=HELP.keys() - shown.keys())
    if "share" not in leave_out:
        group.add_argument(
            "--share",
            choices=("on", "off"),
            default="on",
            help="decode the common beginning of several strengths once; off is slower and gives the same completions "
            "(default %(default)s)",
        )
    add_settings(group, DrawConfig, DRAFT, leave_out=("share",), draft=draft)
    group.add_argument(
        "--prefix-cache",
        choices=("on", "off"),
        default=prefix_cache,
        help="read a beginning that prompts have in common once, and of a later turn only what is new; the "
        "completions are the same except for rounding (default %(default)s)",
    )
    group.add_argument(
        "--rows",
        default="auto",
        metavar="N|auto",
        help="batch size: completions decoded at a time (default auto)",
    )


def add_rollout_options(parser: argparse.ArgumentParser, temperature: bool = True) -> None:
    """Adds how the completions are drawn that a policy is trained on.

    Args:
      temperature: whether it is an option; it is 1 otherwise.
    """
    group = parser.add_argument_group("completions")
    elsewhere = "decode", "beta", "target_kl", "horizon", "seed"
    fixed = "top_k", "top_p", "kv_cache", *(() if temperature else ("temperature",))  # on-policy
    shown = {name: help for name, help in ROLLOUTS.items() if name not in fixed}
    add_settings(group, (RolloutConfig, DecodeConfig), shown, leave_out=(*elsewhere, *fixed))


def decode_config(args: argparse.Namespace, **given) -> DecodeConfig:
    """Returns the validated decoding options; settings that are given come first."""
    return read_settings(args, DecodeConfig, stop=tuple(map(unescape, args.stop)), **given)


def check_as_is(config: DecodeConfig) -> None:
    """Raises ValueError where completions would not be those of the policies as they are."""
    for name, usual in (("temperature", 1.0), ("top_k", None), ("top_p", None)):
        if (found := getattr(config, name)) != usual:
            expected = f"--temperature={usual:g}" if usual else f"no --{name.replace('_', '-')}"
            raise ValueError(f"expected {expected}, found {found:g}: another law would be drawn from")


def draw_of(args: argparse.Namespace, rule: NamedRule, aligned: int, answers: bool = True):
    """Returns the draw from the realigned policy, as the options have it.

    Args:
      aligned: how many aligned models there are.
      answers: whether a later prompt may continue an earlier one and its answer.

    Raises:
      ValueError: a drafter that is not there, or that the rule does not have.
    """
    from dera_jax.decoding.complete import MixtureDraw
    from dera_jax.decoding.prefix_cache import PrefixCache
    from dera_jax.decoding.speculative_batch import check_drafter

    check_drafter(args.draft, rule.function, 1 + aligned)
    prefixes = PrefixCache(answers=answers) if args.prefix_cache == "on" else None
    return read_settings(args, MixtureDraw, share=args.share == "on", prefixes=prefixes)


def add_stop_option(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Adds at which texts given completions end, named as what ends drawn ones."""
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=f"{f'with {of}: ' if of else ''}a completion that ends with TEXT gets no EOS behind it, as one drawn "
        r"with this --stop; escapes such as \n allowed; may be repeated",
    )


def stop_texts(args: argparse.Namespace) -> tuple[str, ...]:
    """Returns the texts of `--stop`.

    Raises:
      ValueError: an empty one, which everything ends with.
    """
    if not all(args.stop):
        raise ValueError("--stop: expected a text with at least one character, found an empty one")
    return tuple(map(unescape, args.stop))


def unescape(text: str) -> str:
    r"""Returns `text` with escapes such as \n replaced by what they stand for."""
    text = streams.as_text(text)
    try:
        found = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
        found.encode()  # half a character is none
        return found
    except UnicodeError as error:
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
