"""How judges are named on the command line, and what those behind a URL are asked with."""

import argparse
from pathlib import Path

from dera_jax.commands.options import cli
from dera_jax.rewards.endpoint import KEY_ENV, Endpoint

ENDPOINT = Endpoint.__dataclass_fields__
"""Their defaults are those of the options."""
NAMES = (
    "concurrency", "cache", "temperature", "max_new_tokens", "timeout", "retries", "judge_key_env",
    "max_failures", "ask_again",
)  # fmt: skip
"""Of the options that only models behind a URL have."""


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a language model is asked."""
    group = parser.add_argument_group("judges behind a URL")
    group.add_argument(
        "--concurrency", type=int, default=ENDPOINT["concurrency"].default, metavar="N",
        help="requests under way at a time (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="where answers are kept; none is asked for twice (default: dera_jax/judge in XDG_CACHE_HOME or ~/.cache)",
    )  # fmt: skip
    group.add_argument(
        "--temperature", default=f"{ENDPOINT['temperature'].default:g}", metavar="T",
        help="of the judge; none leaves it to the endpoint (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-new-tokens", default=str(ENDPOINT["max_new_tokens"].default), metavar="N",
        help="longest answer of the judge; none leaves it to the endpoint (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=float, default=ENDPOINT["timeout"].default, metavar="SECONDS",
        help="time limit of an answer (default %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--retries", type=int, default=ENDPOINT["retries"].default, metavar="N",
        help="retries after no connection, no answer, or status 408, 409, 425, 429 or 5xx (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--judge-key-env", metavar="NAME",
        help="environment variable with the key, which is kept nowhere and shown nowhere "
        f"(default {KEY_ENV}, whose key goes over https or to this machine only)",
    )  # fmt: skip
    group.add_argument(
        "--max-failures", type=float, default=0.1, metavar="SHARE",
        help="largest share of answers without a verdict; more end the command (default %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--ask-again", action="store_true", help="ask again where the answer kept has no verdict"
    )


def refuse_without_endpoint(args: argparse.Namespace, parser: cli.Parser, *more: str) -> None:
    """Raises ValueError where an option is given that has a meaning only for a judge behind a URL."""
    for name in (*NAMES, *more):
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{cli.option(name)} has a meaning only with --judge=URL,model")


def endpoint_settings(args: argparse.Namespace) -> dict:
    """Returns the fields of `Endpoint` that the options give."""
    return {
        **({"cache": args.cache} if args.cache else {}),
        "concurrency": args.concurrency,
        "temperature": _number_or_none("--temperature", args.temperature, float),
        "max_new_tokens": _number_or_none("--max-new-tokens", args.max_new_tokens, int),
        "timeout": args.timeout,
        "retries": args.retries,
        "key_env": args.judge_key_env,
    }


def _number_or_none(name: str, text: str, kind: type) -> float | int | None:
    if text == "none":
        return None
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number or none, found {text!r}") from None
