"""Tokenizers in the files of model folders, which anybody may have written."""

import hashlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_sentencepiece_available

from dera_jax.common.files import put, read_bytes, staging
from dera_jax.common.folders import no_such_file
from dera_jax.common.json_files import LARGEST_JSON, read_json, read_object
from dera_jax.common.shown import shown
from dera_jax.policies.chat_templates import check_template
from dera_jax.policies.untrusted import OverLimit

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
"""One of these a tokenizer has; the second and the third are sentencepiece's (Llama 2 and Gemma, T5)."""


class Token(TypedDict):
    """A token with settings of its own."""

    content: str


class NamedTemplate(TypedDict):
    """One of several chat templates."""

    name: str
    template: str


AnyToken = str | Token | None
Tokens = list[str | Token] | dict[str, str | Token] | None


class TokenizerSettings(TypedDict, total=False):
    """What is read of tokenizer_config.json."""

    tokenizer_class: str | None
    model_max_length: float | None
    chat_template: str | list[NamedTemplate] | dict[str, str] | None
    model_input_names: Annotated[list[str], Meta(min_length=1)]
    bos_token: AnyToken
    eos_token: AnyToken
    unk_token: AnyToken
    pad_token: AnyToken
    sep_token: AnyToken
    cls_token: AnyToken
    mask_token: AnyToken
    additional_special_tokens: Tokens
    extra_special_tokens: Tokens
    added_tokens_decoder: dict[str, str | Token] | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    add_prefix_space: bool | None
    clean_up_tokenization_spaces: bool | None
    split_special_tokens: bool | None
    padding_side: str | None
    truncation_side: str | None
    extra_ids: Annotated[int, Meta(ge=0, le=10_000)]


SCHEMAS = {
    "tokenizer_config.json": TokenizerSettings,
    "special_tokens_map.json": dict[str, str | Token | list[str | Token] | None],
    "added_tokens.json": dict[str, Annotated[int, Meta(ge=0, lt=2**31)]],
    "chat_template.json": dict[str, Any],
}
"""What the library reads beside the vocabulary, and would believe whatever it is."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a Hugging Face folder.

    Raises:
      ValueError: no tokenizer files, broken ones, or files that would run code of their own.
    """
    found = [name for name in FILES if (folder / name).exists()]
    if not found:
        raise ValueError(
            f"{shown(folder, 200)}: expected tokenizer files (tokenizer.json), found none; "
            "copy them from the model that this one was trained from"
        )
    for name, schema in SCHEMAS.items():
        read_object(folder / name, schema)
    try:
        if not (folder / found[0]).stat().st_size:  # no words, for the library
            raise ValueError("empty")
        with _protobuf_alone(), _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            # What else is read of its settings, so that the library stumbles here or not at all.
            tokenizer.decode(tokenizer("a").input_ids, skip_special_tokens=True)
            tokenizer.get_vocab(), tokenizer.special_tokens_map
    except BaseException as error:  # the library raises many kinds for one cause, Rust's panics among them
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f"{shown(folder, 200)}: the tokenizer cannot be read: {_why(error, found)}"
        ) from None
    # As if it had warned already: what is too long for a model is refused where the model is known.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def fingerprint(folder: Path) -> str:
    """Returns a hash of a folder's tokenizer files and chat templates, the same wherever they lie."""
    names = *FILES, *SCHEMAS, "merges.txt", "vocab.txt"
    paths = {folder / name for name in names} | {
        path
        for pattern in ("*.jinja", "additional_chat_templates/*.jinja", "*.tiktoken")
        for path in folder.glob(pattern)
    }
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


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
            told = shown(" ".join(str(error).split()), 300)
            raise ValueError(f"{shown(folder, 200)}: the tokenizer cannot be written: {told}") from error
        for written in sorted(path for path in place.rglob("*") if path.is_file()):
            put(written, folder / written.parent.relative_to(place))


def _why(error: BaseException, found: list[str]) -> str:
    if found[0].endswith(".model"):
        # The library speaks of tiktoken, which it tries last.
        return f"{found[0]} is no model of sentencepiece, or one that transformers cannot convert"
    return shown(" ".join(str(error).split()), 300)


@contextmanager
def _protobuf_alone() -> Iterator[None]:
    """Lets transformers convert a model of sentencepiece where that package is not installed.

    It asks for the package and then reads the file by protobuf.
    """
    # By its full name: whatever else was imported before, the package may show a function of that name.
    converter = importlib.import_module("transformers.convert_slow_tokenizer")
    asks = converter.requires_backends
    if not is_sentencepiece_available():
        converter.requires_backends = lambda *_: None
    try:
        yield
    finally:
        converter.requires_backends = asks


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the library's warnings: what fails is told in one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_template(path: Path) -> str:
    """Returns the chat template in a file: Jinja, or JSON with a `chat_template`, as tokenizers have it.

    Raises:
      ValueError: no such file, no template in it, or a template that is broken.
    """
    if not path.is_file():
        raise ValueError(f"{shown(path, 200)}: {no_such_file(path)}")
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
