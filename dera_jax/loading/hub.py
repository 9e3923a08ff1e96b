"""A MODEL argument to a folder on this machine."""

import os
from pathlib import Path

FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja"]
"""All that is ever downloaded: no pickles, no code."""


def resolve(model: str) -> Path:
    """Returns the folder of `DIR[@revision]` or `org/name[@revision]`; a folder of that name wins.

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
    return _download(name, revision or None)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FILES))
    except GatedRepoError as error:
        raise ValueError(
            f"{repo}: access is gated; accept its terms at https://huggingface.co/{repo} and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{repo}: no such folder here, and no such repository on the hub") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{repo}: the repository has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ValueError(
            f"{repo}: no such folder here, not in the hub's cache, and the hub cannot be reached{offline}"
        ) from error
