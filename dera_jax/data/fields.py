"""Shapes of training data: what the fields of a record, as the field writes them, give to read and to write.

A text is raw; a chat is a tuple of messages, for the chat template.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from dera_jax.common.shown import shown
from dera_jax.common.usable import Unusable, check_messages, check_text
from dera_jax.data.columns import usual
from dera_jax.data.messages import with_plain_content
from dera_jax.data.records import Record, json_kind

Chat = tuple[dict, ...]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""What the turns of Anthropic's transcripts begin with."""
EQUAL, EMPTY, UNRELATED = "chosen equal to rejected", "an answer is empty", "no prompt in common"
"""Why a record is left out."""


class Row(NamedTuple):
    """What a record gives: a prompt, and one completion, or the chosen and the rejected one.

    All of them are texts, or all are chats.
    """

    prompt: str | Chat | None
    """None: the completion is a whole text, of which all is learned."""
    completions: tuple[str | Chat, ...]


def read_row(record: Record, *, every: bool = False) -> Row:
    """Returns the prompt and the completion of `prompt` and `completion`, of `messages` or of `text`.

    Of `messages` the last one is the completion. A record with `prompt` only, as a line of a .txt file
    is one, is a text.

    Args:
      every: return `messages` whole, as a prompt with an empty completion: they may end as they like.

    Raises:
      ValueError: a field is missing, empty or of the wrong kind; with file and line.
    """
    record, told = _usual(record), record
    given = _given(record)
    if {"prompt", "completion"} <= given:
        return _row(record, "completion")
    if "messages" in given:
        chat = _chat(record, "messages")
        if every:
            return Row(_not_empty(record, "messages", chat), ((),))
        roles = [message["role"] for message in chat]
        if len(chat) < 2 or roles[-1] != "assistant":
            found = shown(", ".join(roles) or "none", 80)
            raise Unusable(
                "messages do not end with an answer",
                f"messages: expected several, the last one the assistant's, found {found}",
            )
        return Row(chat[:-1], (_not_empty(record, "messages", chat[-1:]),))
    name = "prompt" if set(record.fields) == {"prompt"} else "text"
    if name not in given:
        raise _missing(told, "text in `prompt` and `completion`, or in `text`, or a chat in `messages`")
    text = _said(record, name)
    if not isinstance(text, str):
        raise ValueError(f"{record.where}: {name}: expected a string, found a list")
    return Row(None, (_not_empty(record, name, text),))


def read_pair(record: Record) -> Row:
    """Returns the prompt, the chosen and the rejected completion of `chosen`, `rejected` and `prompt`.

    Without `prompt`, both hold it: it is what they begin with in common (see `_split_texts` and
    `_split_chats`). The same holds where they are chats and the prompt, a text, says it once more.

    Raises:
      Unusable: an answer is empty, chosen equals rejected; or what they hold in common is no prompt.
      ValueError: a field is missing, empty or of the wrong kind; with file and line.
    """
    record, told = _usual(record), record
    given = _given(record)
    if not {"chosen", "rejected"} <= given:
        raise _missing(told, "`chosen` and `rejected`, and their `prompt` unless they begin with it")
    chosen, rejected = (_not_empty(record, name, _said(record, name)) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError(
            f"{record.where}: rejected: expected {json_kind(chosen)} as `chosen` is one, "
            f"found {json_kind(rejected)}"
        )
    if chosen == rejected:
        raise Unusable(EQUAL)
    if "prompt" in given and (isinstance(chosen, str) or not isinstance(record.fields["prompt"], str)):
        return _row(record, "chosen", "rejected")
    if "prompt" in given and not any(map(_asks, (chosen, rejected))):
        # A text and what answers it: the text is the user's message.
        asked = ({"role": "user", "content": _said(record, "prompt")},)
        return Row(asked, (chosen, rejected))
    return (_split_texts if isinstance(chosen, str) else _split_chats)(chosen, rejected)


def has_pair(record: Record, *, labelled: bool = False) -> bool:
    """Returns whether a record is read by `read_pair` rather than by `read_row` (and `read_label`)."""
    given = _given(_usual(record))
    own = {"label"} if labelled else {"completion", "messages", "text"}
    return {"chosen", "rejected"} <= given and not own & given


def is_text(record: Record) -> bool:
    """Returns whether a record holds a whole text, of which there is no prompt."""
    return not {"completion", "messages", "chosen"} & _given(_usual(record))


def read_label(record: Record) -> bool:
    """Returns whether a completion is desirable, of `label`.

    Raises:
      ValueError: it is missing, or neither true nor false.
    """
    label = record.fields.get("label")
    if label in (0, 1):
        return bool(label)
    found = label if isinstance(label, (int, float)) else json_kind(label)
    raise ValueError(f"{record.where}: label: expected true or false, found {found}")


def read_margin(record: Record) -> float:
    """Returns by how much chosen is better: of `margin`, else of `score_chosen` − `score_rejected`, else 0.

    Raises:
      ValueError: one of them is not a finite number, or one score is without the other.
    """
    if record.fields.get("margin") is not None:
        return _number(record, "margin")
    scores = "score_chosen", "score_rejected"
    if not _given(record) & set(scores):
        return 0.0
    chosen, rejected = (_number(record, name) for name in scores)
    return chosen - rejected


def count_common(one: Sequence, other: Sequence) -> int:
    """Returns how many elements (of texts: characters) two sequences begin with in common.

    >>> count_common("blue", "black")
    2
    """
    different = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(different, min(len(one), len(other)))


def _row(record: Record, *names: str) -> Row:
    """Returns the prompt and the completions of fields of their own."""
    prompt = _said(record, "prompt")
    answers = [_said(record, name) for name in names]
    if isinstance(prompt, str) and not any(isinstance(a, str) or not a or _asks(a) for a in answers):
        # A text and messages that answer it: the text is the user's message.
        prompt = ({"role": "user", "content": prompt},)
    if not isinstance(prompt, str) and (not prompt or prompt[-1]["role"] == "assistant"):
        raise ValueError(f"{record.where}: prompt: expected messages that the assistant answers")
    return Row(prompt, tuple(_completion(record, name, prompt) for name in names))


def _completion(record: Record, name: str, prompt: str | Chat) -> str | Chat:
    """Returns a field as the completion of `prompt`: a text that answers a chat is a message."""
    said = _not_empty(record, name, _said(record, name))
    if isinstance(prompt, str) and not isinstance(said, str):
        raise ValueError(f"{record.where}: {name}: expected a string as `prompt` is one, found a list")
    if isinstance(prompt, str):
        return said
    if isinstance(said, str):
        return ({"role": "assistant", "content": said},)
    if said[0]["role"] != "assistant":
        raise ValueError(
            f"{record.where}: {name}[0]: expected the assistant's, found the {said[0]['role']}'s"
        )
    return said


def _split_texts(chosen: str, rejected: str) -> Row:
    """Returns two texts without what they begin with in common, which is the prompt.

    The prompt of a transcript ends with the last turn of the assistant that begins in both. That of other
    texts ends behind a word or a line, so that no token lies across its end:

    >>> _split_texts("The sky is blue", "The sky is black")
    Row(prompt='The sky is', completions=(' blue', ' black'))
    """
    shared = chosen[: count_common(chosen, rejected)]
    if all(HUMAN in text and ASSISTANT in text for text in (chosen, rejected)):
        end = shared.rfind(ASSISTANT) + len(ASSISTANT) if ASSISTANT in shared else 0
    else:
        longest = min(len(shared), len(chosen) - 1, len(rejected) - 1)
        ends = range(longest, 0, -1)
        # Texts without spaces have no such end.
        end = next((e for e in ends if _between_words(chosen, e) and _between_words(rejected, e)), longest)
    if end < 1:
        raise Unusable(UNRELATED)
    completions = chosen[end:], rejected[end:]
    if not all(map(str.strip, completions)):
        raise Unusable(EMPTY)
    return Row(chosen[:end], completions)


def _asks(chat: Chat) -> bool:
    """Returns whether a chat holds what the assistant answers."""
    return chat[0]["role"] != "assistant"


def _between_words(text: str, end: int) -> bool:
    """Returns whether a space begins, or a line ended, at `end`: tokens hold a space before a word."""
    last, following = text[end - 1], text[end]
    return following.isspace() if not last.isspace() else last == "\n" and not following.isspace()


def _split_chats(chosen: Chat, rejected: Chat) -> Row:
    """Returns two chats without the messages that both begin with, up to an answer of the assistant."""
    shared = count_common(chosen, rejected)
    answered = [
        n for n in range(1, shared + 1)
        if all(n < len(chat) and chat[n]["role"] == "assistant" for chat in (chosen, rejected))
    ]  # fmt: skip
    if not answered:
        raise Unusable(UNRELATED)
    end = answered[-1]
    if _is_empty(chosen[end:]) or _is_empty(rejected[end:]):
        raise Unusable(EMPTY)
    return Row(chosen[:end], (chosen[end:], rejected[end:]))


def _usual(record: Record) -> Record:
    """Returns a record with the usual names of its fields (see `columns`)."""
    return replace(record, fields=usual(record.fields, record.where))


def _given(record: Record) -> set[str]:
    """Returns the names of the fields; tables fill those that a row does not have with null."""
    return {name for name, value in record.fields.items() if value is not None}


def _said(record: Record, name: str) -> str | Chat:
    value = record.fields[name]
    if not isinstance(value, str):
        return _chat(record, name)
    check_text(value)
    return value


def _chat(record: Record, name: str) -> Chat:
    where = f"{record.where}: {name}"
    value = with_plain_content(record.fields[name], where)
    if not isinstance(value, (list, tuple)):
        expected = "a list" if name == "messages" else "a string or a list"
        raise ValueError(f"{where}: expected {expected} of messages, found {json_kind(value)}")
    for n, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}[{n}]: expected an object with 'role' and 'content'")
        for part in ("role", "content"):
            if not isinstance(message[part], str):
                raise ValueError(f"{where}[{n}]: {part}: expected a string, found {json_kind(message[part])}")
    check_messages(value)
    return tuple({key: v for key, v in message.items() if v is not None} for message in value)


def _not_empty(record: Record, name: str, said: str | Chat) -> str | Chat:
    if _is_empty(said):
        raise Unusable(f"{name} is empty")
    return said


def _is_empty(said: str | Chat) -> bool:
    return not (said if isinstance(said, str) else any(message["content"] for message in said))


def _number(record: Record, name: str) -> float:
    value = record.fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        found = value if isinstance(value, float) else json_kind(value)
        raise ValueError(f"{record.where}: {name}: expected a finite number, found {found}")
    return float(value)


def _missing(record: Record, expected: str) -> ValueError:
    found = (f"{name} (null)" if value is None else str(name) for name, value in record.fields.items())
    return ValueError(f"{record.where}: expected {expected}; found {', '.join(found) or 'none'}")
