"""Text to token ids and back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from dera_jax.chat_templates import check_template
from dera_jax.chat_templates import render_chat as render_chat
from dera_jax.files import LARGEST_JSON, read_bytes, read_json
from dera_jax.shown import shown
from dera_jax.tokenizer_files import load_tokenizer as load_tokenizer
from dera_jax.tokenizer_files import save_tokenizer as save_tokenizer
from dera_jax.untrusted import OverLimit
from dera_jax.usable import Unusable

CONTEXT = 4
"""Prompt tokens decoded together with a completion."""
SMALLEST_BUCKET = 16
"""Prompts are padded to at least this many tokens."""


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    """Returns the ids of a text.

    Args:
      special: whether the tokenizer adds the special tokens that it begins and ends a text with.

    Raises:
      ValueError: the text holds half of a character, as JSON may (`\\ud83d`), which no tokenizer reads; or
        the tokenizer fails.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 20]
        raise ValueError(
            f"expected text, found half of a character at position {error.start} of {around!r}"
        ) from None
    try:
        return list(tokenizer(text, add_special_tokens=special).input_ids)
    except BaseException as error:
        # What Rust panics with is no Exception; a pattern of the tokenizer's that never ends is one cause.
        if type(error).__name__ != "PanicException":
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
) -> list[int]:
    """Returns the ids of a prompt, with the special tokens that the tokenizer itself begins with.

    Args:
      text: a raw prompt; or None where there are `messages`.
      prefix: start of the answer, put behind the prompt.
      template: chat template for the messages; None is the tokenizer's own, and an empty one puts a
        blank line between their contents and treats that as raw text.
      reader: whether an encoder reads the prompt, which then ends as the tokenizer ends it.

    Raises:
      ValueError: the prompt has no tokens, or there is no chat template, or it refuses the messages.
    """
    if reader and prefix:
        raise ValueError("the prompt has a `prefix`, and a model with an encoder has no place for one")
    if messages is not None and template == "":
        text, messages = "\n\n".join(message["content"] for message in messages), None
        text += "\n\n" if prefix else ""
    if messages is None:
        tokens = text_ids(tokenizer, text + prefix)
        # Some tokenizers end every text with EOS, which would end the completion before it starts.
        if len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id and not reader:
            tokens = tokens[:-1]
    else:
        rendered = render_chat(tokenizer, messages, template)
        # The template writes the special tokens itself.
        tokens = text_ids(tokenizer, rendered + prefix, special=reader)
    # Text that says BOS already, to a tokenizer that says it too.
    if len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_token_id:
        tokens = tokens[1:]
    if not tokens:
        raise Unusable("the prompt is empty: it has no tokens")
    return tokens


def read_template(path: Path) -> str:
    """Returns the chat template in a file: Jinja, or JSON with a `chat_template`, as tokenizers have it.

    Raises:
      ValueError: no such file, no template in it, or a template that is broken.
    """
    if not path.is_file():
        found = "expected a file, found a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{shown(path, 200)}: {found}")
    if path.suffix == ".json":
        text = read_json(path, dict).get("chat_template")
        if not isinstance(text, str):
            found = type(text).__name__
            raise ValueError(f"{shown(path, 200)}: expected a string in 'chat_template', found {found}")
    else:
        try:
            text = read_bytes(path, LARGEST_JSON).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{shown(path, 200)}: cannot be read: {error}") from None
    if not text.strip():
        raise ValueError(f"{shown(path, 200)}: the chat template is empty")
    try:
        check_template(text)
    except OverLimit as error:
        raise ValueError(f"{shown(path, 200)}: the chat template {error}") from None
    except ValueError as error:
        raise ValueError(f"{shown(path, 200)}: the chat template is broken: {error}") from None
    return text


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str) -> list[int]:
    """Returns the ids of `text` as it continues `prompt`, without EOS."""
    # Encoded together with the prompt, so that the space between them is kept.
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    together = encode_prompt(tokenizer, before + text)
    if together[: len(prompt)] == list(prompt):
        return together[len(prompt) :]
    # The tokenizer merges across the border. Encoded alone, the text would get a space that is not
    # there; behind a line break it does not.
    border = text_ids(tokenizer, "\n", special=False)
    behind = text_ids(tokenizer, "\n" + text, special=False)
    if behind[: len(border)] == border:
        return behind[len(border) :]
    return text_ids(tokenizer, text, special=False)


def decode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], completion: Sequence[int]
) -> str:
    """Returns the text of `completion` as it continues `prompt`.

    Tokenizers drop the space before the first word of a text, so the completion is decoded behind
    the last tokens of its prompt.
    """
    start = max(len(prompt) - CONTEXT, 0)
    before = tokenizer.decode(prompt[start:], skip_special_tokens=True)
    # Half a character would spoil what follows it.
    while start and before.startswith("\ufffd"):
        start -= 1
        before = tokenizer.decode(prompt[start:], skip_special_tokens=True)
    return tokenizer.decode([*prompt[start:], *completion], skip_special_tokens=True)[len(before) :]


def bucket_length(length: int) -> int:
    """Returns the padded length of a prompt of `length` tokens: the next power of two.

    It depends on the prompt alone, so that its completions do not depend on other prompts.
    """
    return max(SMALLEST_BUCKET, 1 << max(length - 1, 0).bit_length())


def padded_length(length: int) -> int:
    """Returns the padded length of whole texts: the next of 16, 24, 32, 48, 64, 96, 128 …"""
    whole = bucket_length(length)
    return whole * 3 // 4 if length <= whole * 3 // 4 else whole


def pad_left(tokens: Sequence[int], bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `tokens` at the end of `bucket` slots, and the mask of real tokens; both [1, bucket]."""
    padded, mask = np.zeros((1, bucket), np.int32), np.zeros((1, bucket), bool)
    if tokens:
        padded[0, -len(tokens) :] = tokens
        mask[0, -len(tokens) :] = True
    return padded, mask


def check_same_vocabulary(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: Sequence[str]
) -> None:
    """Raises ValueError where two tokenizers give one word different ids."""
    one, other = first.get_vocab(), second.get_vocab()
    if one == other:
        return
    word = min(one.keys() ^ other.keys() or {w for w in one if one[w] != other[w]})
    raise ValueError(
        f"the models have different vocabularies: {word!r} is {one.get(word, 'absent')} in "
        f"{shown(names[0], 200)} ({len(one)} words) and {other.get(word, 'absent')} in "
        f"{shown(names[1], 200)} ({len(other)} words)"
    )
