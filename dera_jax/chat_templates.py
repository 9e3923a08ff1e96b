"""Chats to text, as transformers renders them, through templates that are not trusted."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from dera_jax import untrusted
from dera_jax.shown import shown

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What messages call the thoughts before an answer; templates know the first two."""
MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands where a message ends that is to be continued; templates may trim the space."""


def render_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Mapping]],
    template: str | None = None,
    *,
    answer: bool = True,
) -> list[str]:
    """Returns the texts of chats, and with `answer` of where the assistant's next messages begin.

    Args:
      template: None is the tokenizer's own.

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
        variables = [own | _variables(messages, answer) for messages in chats]
        return untrusted.ask(template=tokenizer.get_chat_template(template), variables=variables)
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
) -> str:
    """Returns the text of one chat; as `render_chats`."""
    (text,) = render_chats(tokenizer, [messages], template, answer=answer)
    return text


def render_started(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping]) -> str:
    """Returns the text of a chat up to the end of its last message, which is to be continued.

    Raises:
      ValueError: as `render_chats`, or the template does not write the message.
    """
    *before, last = messages
    text = render_chat(tokenizer, [*before, last | {"content": last["content"] + MARK}], answer=False)
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
