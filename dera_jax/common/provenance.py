"""How a result was made: command, commit, versions, platform, time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from dera_jax.common.version import __version__


def provenance(command: list[str], **more) -> dict:
    """Returns how a result was made: command, git commit, versions, platform, time (UTC).

    Args:
      command: the words of the command line.
      **more: JSON to add (device, dtype, hashes of models …).
    """
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers")
    versions = {"python": platform.python_version(), "dera_jax": __version__}
    return {
        "command": list(command),
        "git": _git(Path(__file__).resolve().parents[2]),
        "versions": versions | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path) -> dict | None:
    """Returns the commit of the checkout at `root`, and whether tracked files were changed since."""

    def git(*words):
        ended = subprocess.run(["git", "-C", root, *words], capture_output=True, timeout=30, check=True)
        return os.fsdecode(ended.stdout)

    try:
        # An installed package may lie inside somebody else's checkout.
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != root:
            return None
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None
