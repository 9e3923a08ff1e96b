"""What endpoints that speak as OpenAI's do say: an answer, an error, how long to wait."""

import json
from typing import Annotated, Any, TypedDict

import msgspec
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from dera_jax.common.json_files import check_type
from dera_jax.rewards.bounded_http import Response


class Message(TypedDict):
    """`choices[].message` of a chat completion."""

    content: str | list[Any] | None


class Choice(TypedDict):
    """One of `choices`."""

    message: Message


class Completion(TypedDict):
    """A chat completion, as far as it is used."""

    choices: Annotated[list[Choice], msgspec.Meta(min_length=1)]


def content(response: Response) -> str | None:
    """Returns the answer in a response, "" if it says nothing; None if it is no chat completion."""
    try:
        found = json.loads(response.body)
        check_type(found, Completion)
    except (ValueError, RecursionError):
        return None
    said = found["choices"][0]["message"]["content"]
    return "".join(map(_text, said)) if isinstance(said, list) else said or ""


def _text(part: object) -> str:
    """Returns the text of a part of a message's content; of an image, or what is no part, none."""
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def message(response: Response) -> str:
    """Returns what the endpoint says is wrong."""
    text = response.body.decode("utf-8", "replace")
    try:
        said = json.loads(text)["error"]
        return str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def retry_after(response: Response | None) -> float | None:
    """Returns the seconds of a response's Retry-After, a number or a date; None without."""
    if response is None or response.retry_after is None:
        return None
    try:
        return float(Retry().parse_retry_after(response.retry_after))
    except (InvalidHeader, ValueError, TypeError, OverflowError):
        return None
