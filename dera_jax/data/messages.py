"""What a record says to a chat template: messages as data sets write them, tools and settings beside them."""

import json
from collections.abc import Mapping

from dera_jax.data.records import json_kind

TAKEN = ("messages", "add_generation_prompt", "continue_final_message", "tools", "tokenize", "return_tensors")
"""What a template is told by others than a record's settings."""


def with_plain_content(messages: object, where: str) -> object:
    """Returns messages whose content is a text where it was a list of parts of text; all else as it is.

    >>> with_plain_content([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "")
    [{'role': 'user', 'content': 'Hi'}]

    Raises:
      ValueError: a part that is no text.
    """
    if not isinstance(messages, (list, tuple)):
        return messages
    return [
        {**message, "content": _joined(message["content"], f"{where}[{n}]: content")}
        if isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple))
        else message
        for n, message in enumerate(messages)
    ]


def _joined(parts: list | tuple, where: str) -> str:
    """Returns parts behind one another, as templates write them."""
    for n, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else json_kind(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            found = f"a part of type {kind!r:.60}" if isinstance(part, Mapping) else kind
            raise ValueError(f"{where}[{n}]: expected {{'type': 'text', 'text': …}}, found {found}")
    return "".join(part["text"] for part in parts)


def template_variables(fields: Mapping, where: str, settings: Mapping | None = None) -> dict:
    """Returns what `tools` and `chat_template_kwargs` of a record tell the chat template; TRL's names.

    Args:
      settings: of all records; what a record says itself counts.

    Raises:
      ValueError: they are of another kind.
    """
    tools, own = fields.get("tools"), fields.get("chat_template_kwargs")
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = fields["tools"]
    if tools and not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError(f"{where}: tools: expected a list of objects, found {json_kind(tools)}")
    if own and not isinstance(own, Mapping):
        raise ValueError(
            f"{where}: chat_template_kwargs: expected an object such as {{'enable_thinking': false}}, "
            f"found {json_kind(own)}"
        )
    # Tables fill the names a row does not have with null.
    given = {name: value for name, value in (own or {}).items() if value is not None}
    check_settings(given, f"{where}: chat_template_kwargs")
    return dict(settings or {}) | given | ({"tools": list(tools)} if tools else {})


def check_settings(settings: Mapping, where: str) -> None:
    """Raises ValueError where settings of a chat template have the name of what it is told otherwise."""
    if wrong := next((name for name in settings if name in TAKEN), None):
        raise ValueError(f"{where}: expected settings of the template, found {wrong!r}")
