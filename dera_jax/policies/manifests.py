"""The manifest of a model's folder: the last file that is written, with the hashes of those it speaks for.

A folder whose manifest does not fit its files is one that a killed process was writing, or a damaged one.
"""

from pathlib import Path
from typing import NotRequired, TypedDict

from dera_jax.common.json_files import read_object, write_json
from dera_jax.common.shown import shown
from dera_jax.policies import tensors

NAME = "manifest.json"
CONFIGS = ("config.json", "adapter_config.json", "value_config.json")
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "value_head.safetensors")


class Manifest(TypedDict):
    """Of a model that our commands made."""

    method: NotRequired[str]
    finished: NotRequired[bool]
    files: NotRequired[dict[str, str]]
    """SHA-256 of the configuration and of the weights, by name; older versions told none."""
    checkpoint: NotRequired[int]
    """Step of the one that is kept."""
    best: NotRequired[dict[str, float | None]]
    """Step and figure of the best evaluation."""


def read_manifest(folder: Path) -> dict:
    """Returns the manifest of a folder; an empty one where there is none.

    Raises:
      ValueError: it is not that of a model.
    """
    return read_object(folder / NAME, Manifest)


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes the manifest of the configuration and the weights that lie in a folder, once they do.

    Raises:
      ValueError: it cannot be written.
    """
    write_json(folder / NAME, manifest | {"files": _hashes(folder)})


def find_damage(folder: Path, manifest: dict) -> str | None:
    """Returns what is wrong with the files that a manifest speaks for; None if they are whole.

    Of an older version's manifest, which has no hashes, no more than that there are weights.
    """
    files = manifest.get("files")
    if files is None:
        return None if _weights(folder) else "has no weights"
    found = _hashes(folder)
    for name, expected in files.items():
        if found.get(name) != expected:
            return f"{shown(name, 80)} {'is not what was written' if name in found else 'is missing'}"
    return None


def holds_model(folder: Path) -> bool:
    """Whether there are weights or a configuration in a folder."""
    return any((folder / name).exists() for name in CONFIGS) or bool(_weights(folder))


def _weights(folder: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for name in (*CONFIGS, tensors.INDEX) if (path := folder / name).exists()]
    return {path.name: tensors.sha256(path).hex() for path in (*files, *_weights(folder))}
