"""Text to token ids and back."""

import re
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from dera_jax.common.shown import shown
from dera_jax.common.usable import Unusable, check_text
from dera_jax.policies.chat_templates import render_chat

CONTEXT = 4
"""Prompt tokens decoded together with a completion."""
REPLACEMENT = "\ufffd"
"""Stands in texts for bytes that are no character."""
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""Names of tokens that are one byte each, which some tokenizers spell rare characters with."""
BORDERS = ("\n", "|", "a", "0", "\x01")
"""Characters that a text is encoded behind, the first that does not become one token with its start."""


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    """Returns the ids of a text.

    Args:
      special: whether the tokenizer adds the special tokens that it begins and ends a text with.

    Raises:
      Unusable: the text holds half of a character, which no tokenizer reads.
      ValueError: the tokenizer fails.
    """
    check_text(text)
    try:
        return list(tokenizer(text, add_special_tokens=special).input_ids)
    except BaseException as error:
        # What Rust panics with (a pattern that never ends is one cause) is no Exception; its errors are plain ones.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        whose = shown(tokenizer.name_or_path, 200)
        raise ValueError(f"the tokenizer of {whose} fails: {shown(error, 200)}") from None


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    messages: Sequence[dict] | None = None,
    prefix: str = "",
    *,
    template: str | None = None,
    reader: bool = False,
    variables: Mapping | None = None,
) -> list[int]:
    """Returns the ids of a prompt, with the special tokens that the tokenizer itself begins with.

    Args:
      text: a raw prompt; or None where there are `messages`.
      prefix: start of the answer, put behind the prompt.
      template: chat template for the messages; None is the tokenizer's own, and an empty one puts a
        blank line between their contents and treats that as raw text.
      reader: whether an encoder reads the prompt, which then ends as the tokenizer ends it.
      variables: what else the template reads.

    Raises:
      ValueError: the prompt has no tokens, or there is no chat template, or it refuses the messages.
    """
    if reader and prefix:
        raise ValueError("the prompt has a `prefix`, and a model with an encoder has no place for one")
    said, raw = written_prompt(tokenizer, text, messages, prefix, template, variables)
    return start_ids(tokenizer, said, raw=raw, reader=reader)


def written_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    messages: Sequence[dict] | None,
    prefix: str = "",
    template: str | None = None,
    variables: Mapping | None = None,
) -> tuple[str, bool]:
    """Returns what is read of a prompt (see `encode_prompt`), and whether it is raw text."""
    if messages is None:
        return text + prefix, True
    if template == "":
        return joined(messages) + ("\n\n" + prefix if prefix else ""), True
    return render_chat(tokenizer, messages, template, variables=variables) + prefix, False


def joined(messages: Sequence[dict]) -> str:
    """Returns a chat without a template: blank lines between the messages' contents."""
    return "\n\n".join(message["content"] for message in messages)


def start_ids(tokenizer: PreTrainedTokenizerBase, said: str, *, raw: bool, reader: bool = False) -> list[int]:
    """Returns the ids of a text that begins as a text of the model does, and that may go on.

    Args:
      raw: whether the tokenizer adds its special tokens; a chat template writes them itself.
      reader: whether an encoder reads the text, which then ends as the tokenizer ends it.

    Raises:
      ValueError: the text has no tokens.
    """
    tokens = text_ids(tokenizer, said, special=raw or reader)
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    # Some tokenizers end every text with EOS, which would end the completion before it starts.
    ended = raw and len(tokens) > 1 and tokens[-1] == eos and not reader
    # Text that says BOS already, to a tokenizer that says it too.
    doubled = len(tokens) > 1 and tokens[0] == tokens[1] == bos
    if ended or doubled:
        # What the text says itself is not the tokenizer's to take away.
        own = text_ids(tokenizer, said, special=False)
        if ended and _repeats(tokens[::-1], eos) > _repeats(own[::-1], eos):
            tokens = tokens[:-1]
        if doubled and _repeats(tokens, bos) > _repeats(own, bos):
            tokens = tokens[1:]
    if not tokens:
        if said:
            raise Unusable(f"the tokenizer, of {len(tokenizer)} tokens, makes none of the prompt")
        raise Unusable("the prompt is empty: it has no tokens")
    return tokens


def _repeats(tokens: Sequence[int], token: int) -> int:
    """Returns how often `tokens` begin with `token`."""
    return next((n for n, each in enumerate(tokens) if each != token), len(tokens))


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str) -> list[int]:
    """Returns the ids of `text` as it continues `prompt`, without EOS."""
    # Encoded together with the prompt, so that the space between them is kept.
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    together = encode_prompt(tokenizer, before + text)
    if together[: len(prompt)] == list(prompt):
        return together[len(prompt) :]
    # The tokenizer merges across the border. Encoded alone, the text would get a space that is not
    # there; behind a line break it does not, or behind another character where two line breaks are one token.
    for ahead in BORDERS:
        border = text_ids(tokenizer, ahead, special=False)
        behind = text_ids(tokenizer, ahead + text, special=False)
        if behind[: len(border)] == border:
            return behind[len(border) :]
    return text_ids(tokenizer, text, special=False)


def decode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    special: bool = False,
) -> str:
    """Returns the text of `completion` as it continues `prompt`.

    Tokenizers drop the space before the first word of a text, so the completion is decoded behind
    the last tokens of its prompt.

    Args:
      special: whether special tokens are in the text.
    """
    # The bytes of a character that is cut off, a replacement character each, would take the whole characters
    # before them along, which are bytes too.
    whole = len(completion) - _unfinished(tokenizer, completion)
    text = _decode_behind(tokenizer, prompt, completion[:whole], special)
    return text + REPLACEMENT * (len(completion) - whole)


def _decode_behind(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], completion: Sequence[int], special: bool
) -> str:
    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=not special)

    start = max(len(prompt) - CONTEXT, 0)
    before = decode(prompt[start:])
    # Half a character would spoil what follows it.
    while start and before.startswith(REPLACEMENT):
        start -= 1
        before = decode(prompt[start:])
    together = decode([*prompt[start:], *completion])
    if together.startswith(before):
        return together[len(before) :]
    if half := _unfinished(tokenizer, prompt):  # a character that the completion ends is the completion's
        return _decode_behind(tokenizer, prompt[:-half], [*prompt[-half:], *completion], special)
    ahead = before.rstrip(REPLACEMENT)
    if ahead != before and together.startswith(ahead):
        return together[len(ahead) :]
    # Bytes that are no character took the prompt's last characters along.
    return decode(completion) if REPLACEMENT in together else together[len(before) :]


def _unfinished(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> int:
    """Returns how many tokens at the end are bytes, one a token, of a character whose others are missing."""
    for count, token in enumerate(reversed(tokens[-3:]), 1):
        found = BYTE_TOKEN.fullmatch(tokenizer.convert_ids_to_tokens(int(token)) or "")
        if not found or (byte := int(found[1], 16)) < 0x80 or tokenizer.decode([token]) != REPLACEMENT:
            return 0
        if byte >= 0xC0:  # the first of two, three or four
            return count if count < 2 + (byte >= 0xE0) + (byte >= 0xF0) else 0
    return 0
