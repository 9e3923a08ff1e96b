"""Columns of other tools' data under the usual names: ShareGPT's, Alpaca's, StackExchange's pairs.

| columns | are read as |
|---|---|
| `conversations` of `from` and `value` | `messages`; beside `chosen` and `rejected`, or `completion`, `prompt` |
| `instruction`, `input`, `output` | a chat: the user says the instruction and, behind a blank line, the input |
| `question`, `response_j`, `response_k` | a chat: the question, the chosen and the rejected answer |

`system` and, with an instruction, `history` (pairs of texts) come before. A message by itself stands for a list of one.
"""

from collections.abc import Mapping, Sequence

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
}
"""What ShareGPT calls who speaks; others are called as they are."""
CHATS = ("prompt", "completion", "chosen", "rejected", "messages", "conversations")
USUAL = {"prompt", "messages", "text", "turns"}
"""Where one of them is given, nothing else is looked for."""
ANSWERS = {"chosen", "rejected", "completion"}
RESPONSES = {"question", "response_j", "response_k"}


def usual(fields: Mapping, where: str, *, asks: bool = False) -> dict:
    """Returns a record's fields under the usual names.

    Args:
      where: file and line, for errors.
      asks: whether the record is read as a prompt: answers that a conversation ends with are left out.

    Raises:
      ValueError: an instruction, its input, a system's message or a history that are none.

    >>> usual({"instruction": "Add.", "input": "1 + 2", "output": "3"}, "f:1")
    {'prompt': [{'role': 'user', 'content': 'Add.\\n\\n1 + 2'}], 'completion': '3'}
    """
    found = {name: _messages(value) if name in CHATS else value for name, value in fields.items()}
    given = {name for name, value in fields.items() if value is not None}
    if given & USUAL:
        return found
    if "conversations" in given:
        chat = found.pop("conversations")
        if isinstance(chat, Sequence) and not isinstance(chat, str):
            chat = [*_system(found, where), *chat]
            while asks and chat and isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant":
                chat.pop()
        return found | {"prompt" if given & ANSWERS else "messages": chat}
    if "instruction" in given:
        return _instructed(found, where)
    if given >= RESPONSES:
        question, chosen, rejected = (found.pop(name) for name in ("question", "response_j", "response_k"))
        asked = _message("user", _text(question, "question", where))
        return found | {"prompt": [asked], "chosen": chosen, "rejected": rejected}
    return found


def _instructed(found: dict, where: str) -> dict:
    """Returns Alpaca's fields as a prompt, and its output as a completion."""
    names = ("instruction", "input", "history", "output")
    instruction, more, history, output = (found.pop(name, None) for name in names)
    said = [_text(instruction, "instruction", where), *([_text(more, "input", where)] if more else [])]
    pairs = history or []
    if not isinstance(pairs, Sequence) or not all(
        isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError(f"{where}: history: expected a list of pairs of texts")
    chat = _system(found, where)
    for number, pair in enumerate(pairs):
        turn = zip(("user", "assistant"), pair, strict=True)
        chat += [_message(role, _text(text, f"history[{number}]", where)) for role, text in turn]
    answer = {} if output is None else {"completion": output}
    return found | {"prompt": [*chat, _message("user", "\n\n".join(said))]} | answer


def _system(found: dict, where: str) -> list[dict]:
    """Returns the system's message, if there is one, and takes it out of the fields."""
    system = found.pop("system", None)
    return [_message("system", _text(system, "system", where))] if system else []


def _messages(value: object) -> object:
    """Returns a chat with the usual names of what a message holds; a message by itself as a list of one."""
    chat = [value] if isinstance(value, Mapping) else value
    if not isinstance(chat, list | tuple):
        return value
    return [_renamed(message) for message in chat]


def _renamed(message: object) -> object:
    if not isinstance(message, Mapping) or not {"from", "value"} <= message.keys() or "role" in message:
        return message
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    role = message["from"]
    return {
        "role": ROLES.get(role, role) if isinstance(role, str) else role,
        "content": message["value"],
    } | rest


def _message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name}: expected a string, found a {type(value).__name__}")
    return value
