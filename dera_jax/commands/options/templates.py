"""What chat templates are told beside messages: the option that all commands have it by."""

import argparse
import json

NAME = "--chat-template-kwargs"


def add_template_settings(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the option, whose value is read when the command line is."""
    parser.add_argument(
        NAME,
        type=_settings,
        default={},
        metavar="JSON",
        help="variables for the chat template, such as '{\"enable_thinking\": false}'; a record's own "
        "chat_template_kwargs come first",
    )


def _settings(text: str) -> dict:
    from dera_jax.data.messages import check_settings

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f'expected an object as JSON such as {{"enable_thinking": false}}, found {text!r:.60}'
        )
    try:
        check_settings(found, NAME)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f"{NAME}: ")) from None
    return found
