"""Safetensors files: what is in them, read one tensor at a time, written atomically."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import jax
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from dera_jax.loading.files import read_object

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not yet read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> jax.Array:
        """Returns its values; only its own bytes are read."""
        with safe_open(self.file, framework="flax") as opened:
            return opened.get_tensor(self.name)


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model folder: the one file, else those that the index names.

    Raises:
      ValueError: none, a broken index, or a file that it names is missing.
    """
    # In transformers' order: an index beside the one file is of a model that was there before.
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(f"{index}: expected an object 'weight_map' from tensors to files, found none")
        files = sorted({folder / str(name) for name in names.values()})
        for file in files:
            if not file.is_file():
                raise ValueError(f"{index}: names {file.name}, which is missing")
        return files
    pickles = sorted(folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{folder}: expected model.safetensors, found only {pickles[0].name}; pickles are not read: "
            "convert with transformers' save_pretrained(..., safe_serialization=True)"
        )
    raise ValueError(f"{folder}: expected model.safetensors, found none")


def list_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a model folder by name, from the files' headers.

    Raises:
      ValueError: a file is cut short or not a safetensors file.
    """
    tensors = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="flax") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    part = opened.get_slice(name)
                    tensors[name] = Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            size = file.stat().st_size
            raise ValueError(f"{file}: not a whole safetensors file ({size} bytes): {error}") from error
    return tensors


def save_tensors(file: Path, tensors: dict[str, jax.Array]) -> None:
    """Writes a safetensors file, whole or not at all, that `transformers` loads.

    Raises:
      ValueError: it cannot be written (disk full, no such folder, no permission).
    """
    temporary = file.with_suffix(".partial")
    try:
        # A copy of the dict: safetensors turns its values into NumPy arrays.
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # the library makes it readable by its owner alone
        os.replace(temporary, file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(folder: Path) -> str:
    """Returns a hash of a model's configuration and weights, the same wherever the folder lies."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
