"""A MODEL argument to a folder on this machine."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from dera_jax.common.json_files import LARGEST_JSON
from dera_jax.common.shown import shown

MODELS = ["tokenizer.model", "spiece.model"]
"""Tokenizers that are a model of sentencepiece."""
FILES = ["*.safetensors", "*.json", *MODELS, "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja"]
"""All that is ever downloaded: no pickles, no code."""
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Ends of the names of files that are read whole."""
DOUBLES = ["*/*", "consolidated*"]
"""The same weights in other forms, which some repositories carry beside them."""


def split_adapter(model: str) -> tuple[str, str | None]:
    """Returns base and adapter of `BASE[+ADAPTER]`; a folder of the whole name wins.

    >>> split_adapter("org/base@main+org/adapter")
    ('org/base@main', 'org/adapter')
    """
    base, plus, adapter = model.rpartition("+")
    if not plus or is_folder(model):
        return model, None
    if not base or not adapter:
        raise ValueError(f"{shown(model, 200)}: expected BASE+ADAPTER")
    return base, adapter


def split_models(text: str) -> list[str]:
    """Returns the MODEL arguments that commas part; a folder wins over the commas in its name.

    >>> split_models("org/one,org/two")
    ['org/one', 'org/two']
    """
    parts, found = text.split(","), []
    while parts:
        joined = (",".join(parts[:count]) for count in range(len(parts), 1, -1))
        found.append(next(filter(_is_one, joined), parts[0]))
        parts = parts[found[-1].count(",") + 1 :]
    return found


def _is_one(model: str) -> bool:
    """Returns whether the commas of a MODEL argument are those of folders' names."""
    parts = [part.partition("@") for part in split_adapter(model) if part and "," in part]
    named = all(is_folder(name) and "," not in revision for name, _, revision in parts)
    return is_folder(model) or named


def resolve(model: str, files: Sequence[str] = FILES) -> Path:
    """Returns the folder of `DIR[@revision]` or `org/name[@revision]`; a folder of that name wins.

    Args:
      files: what of a repository is needed.

    Raises:
      ValueError: no such folder and no such repository, the hub cannot be reached, or what lies in the
        folder cannot be read.
    """
    name, _, revision = model.partition("@")
    if is_folder(model):
        return _checked(Path(model))
    if is_folder(name):
        if revision:
            raise ValueError(
                f"{shown(model, 200)}: a folder has no revisions; expected a hub id before the @"
            )
        return _checked(Path(name))
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or not name.isprintable():
        raise ValueError(f"{shown(model, 200)}: no such folder (and not a hub id of the form org/name)")
    return _checked(_download(name, revision or None, files))


def is_folder(name: str) -> bool:
    """Returns whether a folder has this name; no file can have one that is too long, or holds a NUL."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _checked(folder: Path) -> Path:
    """Returns the folder of a model if libraries can open what is in it.

    Raises:
      ValueError: a pipe or a device, which would never end; settings longer than any are; no permission.
    """
    try:
        for entry in (*os.scandir(folder), *_more_templates(folder)):
            _check_file(entry)
    except OSError as error:
        raise ValueError(f"cannot read {shown(folder, 200)}: {error.strerror}") from None
    return folder


def _more_templates(folder: Path) -> list[os.DirEntry]:
    """Returns what transformers reads of a folder below, where there is one."""
    below = folder / "additional_chat_templates"
    return list(os.scandir(below)) if below.is_dir() else []


def _check_file(entry: os.DirEntry) -> None:
    try:
        found = entry.stat()
    except OSError:  # a link to nowhere is as good as no file
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError(f"{shown(entry.path, 200)}: expected a file, found a pipe or a device")
    if entry.name.endswith(TEXTS) and found.st_size > LARGEST_JSON:
        raise ValueError(f"{shown(entry.path, 200)}: expected at most {LARGEST_JSON >> 20} MiB")


def _download(repo: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    model = shown(f"{repo}@{revision}" if revision else repo, 200)
    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=list(files), ignore_patterns=DOUBLES
        )
        return Path(found)
    except errors.HFValidationError as error:
        raise ValueError(f"{model}: no such folder (and not a hub id of the form org/name)") from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{model}: access is gated; accept its terms at https://huggingface.co/{repo} and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"{model}: no such folder here, and no such repository on the hub") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo}: the repository has no revision {shown(repr(revision), 200)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ValueError(f"{model}: no such folder here, not in the hub's cache, and {why}") from error
    # Its bases are the errors of the HTTP client, whichever it is, and of the file system.
    except errors.HfHubHTTPError.__bases__ as error:
        raise ValueError(
            f"{model}: cannot be downloaded: {shown(' '.join(str(error).split()), 500)}"
        ) from error
