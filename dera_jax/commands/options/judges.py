"""How judges are named on the command line, and what those behind a URL are asked with."""

import argparse

from dera_jax.commands.options import cli
from dera_jax.commands.options.settings import Help, add_settings, values_of
from dera_jax.rewards.endpoint import KEY_ENV, Endpoint

HELP: Help = {
    "concurrency": ("N", "requests at a time (default %(default)s)"),
    "cache": (
        "DIR",
        "where answers are stored and looked up (default: dera_jax/judge in XDG_CACHE_HOME or ~/.cache)",
    ),
    "temperature": ("T", "temperature of the judge; none leaves it to the endpoint (default %(default)s)"),
    "max_new_tokens": (
        "N",
        "longest answer of the judge, in tokens; none leaves it to the endpoint (default %(default)s)",
    ),
    "timeout": ("SECONDS", "time limit of an answer (default %(default)g)"),
    "retries": (
        "N",
        "retries after no connection, no answer, or status 408, 409, 425, 429 or 5xx (default %(default)s)",
    ),
}
"""Settings of `Endpoint`."""
NAMES = (*HELP, "judge_key_env", "max_failures", "ask_again")
"""Of the options that only models behind a URL have."""


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a language model is asked."""
    group = parser.add_argument_group("judges behind a URL")
    add_settings(group, Endpoint, HELP, leave_out=("url", "model", "backoff", "key_env"))
    group.add_argument(
        "--judge-key-env", metavar="NAME",
        help="environment variable with the API key, which is never stored or shown "
        f"(default {KEY_ENV}, which is sent only over https or to this machine)",
    )  # fmt: skip
    group.add_argument(
        "--max-failures", type=float, default=0.1, metavar="SHARE",
        help="stop if more than this share of the answers has no verdict (default %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--ask-again", action="store_true", help="ask again where the stored answer has no verdict"
    )


def refuse_without_endpoint(args: argparse.Namespace, parser: cli.Parser, *more: str) -> None:
    """Raises ValueError where an option is given that has a meaning only for a judge behind a URL."""
    for name in (*NAMES, *more):
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{cli.option(name)} has a meaning only with --judge=URL,model")


def endpoint_settings(args: argparse.Namespace) -> dict:
    """Returns the fields of `Endpoint` that the options give."""
    named = {"url", "model", "key_env"}
    return values_of(args, Endpoint, leave_out=named) | {"key_env": args.judge_key_env}
