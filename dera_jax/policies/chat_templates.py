"""Chats to text, as transformers renders them, through templates that are not trusted."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from secrets import token_hex

from transformers import PreTrainedTokenizerBase

from dera_jax.common.shown import shown
from dera_jax.policies import untrusted

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What messages call the thoughts before an answer; templates know the first two."""
MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands where a message ends that is to be continued; templates may trim the space."""
Span = tuple[int, int]
"""Characters of a text, the second one behind its end."""


def render_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Mapping]],
    template: str | None = None,
    *,
    answer: bool | Sequence[bool] = True,
    marks: tuple[str, str] = ("", ""),
    variables: Mapping | None = None,
) -> list[str]:
    """Returns the texts of chats, and with `answer` of where the assistant's next messages begin.

    Args:
      template: None is the tokenizer's own.
      answer: for all chats, or for each.
      marks: are put before and behind what the template says that the assistant writes
        (`{% generation %}`).
      variables: what else the template reads, `tools` among it.

    Raises:
      Refusal: the template is broken or does not take the messages; with what it says.
      ValueError: there is no template, a chat without messages, or a template that takes too much.
    """
    if template is None and tokenizer.chat_template is None:
        raise ValueError(
            "the prompt has `messages`, but the tokenizer has no chat template; --chat-template=FILE gives one"
        )
    if not all(chats):
        raise ValueError("the chat is empty: expected at least one message")
    own = tokenizer.special_tokens_map
    try:
        begins = [answer] * len(chats) if isinstance(answer, bool) else answer
        read = [own | _variables(*each) | dict(variables or {}) for each in zip(chats, begins, strict=True)]
        text = tokenizer.get_chat_template(template)
        return untrusted.ask(template=text, variables=read, marks=marks)
    except untrusted.OverLimit as error:
        whose = "given by --chat-template" if template else f"of {shown(tokenizer.name_or_path, 200)}"
        raise ValueError(f"the chat template {whose} {error}") from None
    except untrusted.Refusal as error:
        raise untrusted.Refusal(f"the chat template refuses the messages: {error}") from None
    except ValueError as error:
        raise ValueError(f"the chat template fails: {error}") from None


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    template: str | None = None,
    *,
    answer: bool = True,
    variables: Mapping | None = None,
) -> str:
    """Returns the text of one chat; as `render_chats`."""
    (text,) = render_chats(tokenizer, [messages], template, answer=answer, variables=variables)
    return text


def render_answers(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    template: str | None = None,
    variables: Mapping | None = None,
) -> tuple[str, list[Span], bool]:
    """Returns a chat's text, where the assistant's answers are in it, and whether the template says so itself.

    Of a template that marks what the assistant writes (`{% generation %}`) the marks count. Of others it
    is what a chat up to an answer has behind the chat before it: with the end of the turn.

    Raises:
      ValueError: as `render_chats`; or a chat is not written as its first messages are, and the rest behind.
    """
    if (template or tokenizer.chat_template) and _MARKED.search(tokenizer.get_chat_template(template)):
        return *_between_marks(tokenizer, messages, template, variables), True
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    before = [messages[:n] for n in answers if n]
    ends = [messages[: n + 1] for n in answers]
    begins = [True] * len(before) + [False] * (len(ends) + 1)
    chats = [*before, *ends, messages]
    texts = render_chats(tokenizer, chats, template, answer=begins, variables=variables)
    starts, whole = texts[: len(before)], texts[-1]
    ends = [_without_eos(end, whole, tokenizer.eos_token) for end in texts[len(before) : -1]]
    if len(starts) < len(ends):  # Nothing is before a first message but its header.
        starts.insert(0, ends[0].partition(messages[0]["content"])[0])
    if not all(
        whole.startswith(end) and end.startswith(start) for start, end in zip(starts, ends, strict=True)
    ):
        raise ValueError(
            "expected a chat template that writes a chat as it writes its first messages, and the rest behind; "
            "found another text: {% generation %} around answers in a --chat-template says what is learned"
        )
    return whole, [(len(start), len(end)) for start, end in zip(starts, ends, strict=True)], False


def _without_eos(end: str, whole: str, eos: str | None) -> str:
    """Returns a chat's text as the whole one begins with it: some templates close what they write with EOS."""
    if whole.startswith(end) or not eos:
        return end
    return end.rstrip().removesuffix(eos)


_MARKED = re.compile(r"{%[-+]?\s*endgeneration\b")


def _between_marks(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    template: str | None,
    variables: Mapping | None,
) -> tuple[str, list[Span]]:
    """Returns a chat's text, and what its template marks in it."""
    marks = f"<{token_hex(8)}>", f"</{token_hex(8)}>"
    (text,) = render_chats(tokenizer, [messages], template, answer=False, marks=marks, variables=variables)
    parts = re.split("|".join(marks), text)
    ends = list(accumulate(map(len, parts)))
    return "".join(parts), list(zip(ends[::2], ends[1::2], strict=False))


def render_started(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping], variables: Mapping | None = None
) -> str:
    """Returns the text of a chat up to the end of its last message, which is to be continued.

    Raises:
      ValueError: as `render_chats`, or the template does not write the message.
    """
    *before, last = messages
    chat = [*before, last | {"content": last["content"] + MARK}]
    text = render_chat(tokenizer, chat, answer=False, variables=variables)
    start, mark, _ = text.rpartition(MARK.strip())
    if not mark or last["content"].strip() not in text:
        raise ValueError("the chat template does not write the message that is to be continued")
    # Where the template trimmed what follows the mark, it would have trimmed what stands before it.
    return start if text[len(start) :].startswith(MARK) else start.rstrip()


def check_template(text: str) -> None:
    """Raises ValueError unless a chat template can be compiled."""
    untrusted.ask(template=text, variables=[])


def _variables(messages: Sequence[Mapping], answer: bool) -> dict:
    """Returns what a template reads beside the special tokens."""
    chat = [{name: value for name, value in message.items() if value is not None} for message in messages]
    more = {"tools": None, "documents": None, "add_generation_prompt": answer}
    return {"messages": [_with_reasoning(message) for message in chat]} | more


def _with_reasoning(message: Mapping) -> Mapping:
    """Returns a message whose thoughts have the names that templates know."""
    thoughts = next((message[name] for name in REASONING if name in message), None)
    if thoughts is None:
        return message
    return {"thinking": thoughts, **message, "reasoning_content": thoughts}
