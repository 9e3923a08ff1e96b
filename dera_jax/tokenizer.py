"""Text to token ids and back."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dera_jax.files import put, read_json, staging
from dera_jax.usable import Unusable

CONTEXT = 4
"""Prompt tokens decoded together with a completion."""
SMALLEST_BUCKET = 16
"""Prompts are padded to at least this many tokens."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a Hugging Face folder.

    Raises:
      ValueError: no tokenizer files, or files that would run code of their own.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(f"{folder}: expected tokenizer files (tokenizer.json), found none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds for one cause: unreadable files
        raise ValueError(f"{folder}: the tokenizer cannot be read: {_one_line(error)}") from error
    # As if it had warned already: what is too long for a model is refused where the model is known.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the files of a tokenizer, each whole or not at all, into a folder, made if need be.

    Raises:
      ValueError: the folder cannot be written.
    """
    with staging(folder, "tokenizer.json") as place:
        try:
            tokenizer.save_pretrained(place)
        except OSError:
            raise
        except Exception as error:  # what the library raises where a disk is full
            raise ValueError(f"{folder}: the tokenizer cannot be written: {_one_line(error)}") from error
        for written in sorted(path for path in place.rglob("*") if path.is_file()):
            put(written, folder / written.parent.relative_to(place))


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
        tokens = tokenizer(text + prefix).input_ids
        # Some tokenizers end every text with EOS, which would end the completion before it starts.
        if len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id and not reader:
            tokens = tokens[:-1]
    else:
        rendered = render_chat(tokenizer, messages, template)
        # The template writes the special tokens itself.
        tokens = tokenizer(rendered + prefix, add_special_tokens=reader).input_ids
    # Text that says BOS already, to a tokenizer that says it too.
    if len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_token_id:
        tokens = tokens[1:]
    if not tokens:
        raise Unusable("the prompt is empty: it has no tokens")
    return list(tokens)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict],
    template: str | None = None,
    *,
    answer: bool = True,
) -> str:
    """Returns the text of a chat, and with `answer` of where the assistant's next message begins.

    Raises:
      ValueError: there is no chat template, or it refuses the messages.
    """
    if template is None and tokenizer.chat_template is None:
        raise ValueError(
            "the prompt has `messages`, but the tokenizer has no chat template; --chat-template=FILE gives one"
        )
    try:
        return tokenizer.apply_chat_template(
            list(messages), chat_template=template, add_generation_prompt=answer, tokenize=False
        )
    # A template is a program, and may fail in any way.
    except Exception as error:
        raise ValueError(f"the chat template refuses the messages: {_one_line(error)}") from error


def read_template(path: Path) -> str:
    """Returns the chat template in a file: Jinja, or JSON with a `chat_template`, as tokenizers have it.

    Raises:
      ValueError: no such file, no template in it, or a template that is broken.
    """
    if not path.is_file():
        found = "expected a file, found a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {found}")
    if path.suffix == ".json":
        settings = read_json(path)
        text = settings.get("chat_template") if isinstance(settings, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{path}: expected a string in 'chat_template', found {type(text).__name__}")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read: {_one_line(error)}") from error
    if not text.strip():
        raise ValueError(f"{path}: the chat template is empty")
    # What transformers adds to the language.
    plain = re.sub(r"{%-? *(end)?generation *-?%}", "", text)
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateError as error:
        raise ValueError(f"{path}: the chat template is broken: {_one_line(error)}") from error
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
    border = tokenizer("\n", add_special_tokens=False).input_ids
    behind = tokenizer("\n" + text, add_special_tokens=False).input_ids
    if behind[: len(border)] == border:
        return behind[len(border) :]
    return tokenizer(text, add_special_tokens=False).input_ids


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
        f"the models have different vocabularies: {word!r} is {one.get(word, 'absent')} in {names[0]} "
        f"({len(one)} words) and {other.get(word, 'absent')} in {names[1]} ({len(other)} words)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
