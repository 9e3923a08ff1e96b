"""A MODEL argument to a folder on this machine."""

from collections.abc import Sequence
from pathlib import Path

FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja"]
"""All that is ever downloaded: no pickles, no code."""
DOUBLES = ["*/*", "consolidated*"]
"""The same weights in other forms, which some repositories carry beside them."""


def split_adapter(model: str) -> tuple[str, str | None]:
    """Returns base and adapter of `BASE[+ADAPTER]`; a folder of the whole name wins.

    >>> split_adapter("org/base@main+org/adapter")
    ('org/base@main', 'org/adapter')
    """
    base, plus, adapter = model.rpartition("+")
    if not plus or Path(model).is_dir():
        return model, None
    if not base or not adapter:
        raise ValueError(f"{model}: expected BASE+ADAPTER")
    return base, adapter


def resolve(model: str, files: Sequence[str] = FILES) -> Path:
    """Returns the folder of `DIR[@revision]` or `org/name[@revision]`; a folder of that name wins.

    Args:
      files: what of a repository is needed.

    Raises:
      ValueError: no such folder and no such repository, or the hub cannot be reached.
    """
    if Path(model).is_dir():
        return Path(model)
    name, _, revision = model.partition("@")
    if Path(name).is_dir():
        if revision:
            raise ValueError(f"{model}: a folder has no revisions; expected a hub id before the @")
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{model}: no such folder (and not a hub id of the form org/name)")
    return _download(name, revision or None, files)


def _download(repo: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    model = f"{repo}@{revision}" if revision else repo
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
        raise ValueError(f"{repo}: the repository has no revision {revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ValueError(f"{model}: no such folder here, not in the hub's cache, and {why}") from error
    # Its bases are the errors of the HTTP client, whichever it is, and of the file system.
    except errors.HfHubHTTPError.__bases__ as error:
        raise ValueError(f"{model}: cannot be downloaded: {' '.join(str(error).split())}") from error
