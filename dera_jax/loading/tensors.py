"""Safetensors files: what is in them, read one tensor at a time, written atomically."""

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import jax
from safetensors import safe_open
from safetensors.flax import save_file

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
    """Returns the safetensors files of a model folder, those of the index if there is one.

    Raises:
      ValueError: none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        for file in files:
            if not file.is_file():
                raise ValueError(f"{folder}: {index.name} names {file.name}, which is missing")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
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
        for name, entry in _header(file).items():
            tensors[name] = Tensor(file, name, tuple(entry["shape"]), entry["dtype"])
    return tensors


def _header(file: Path) -> dict:
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or 8 + length > size:
            raise ValueError(
                f"{file}: not a whole safetensors file (its header is cut short at {size} bytes)"
            )
        try:
            header = json.loads(opened.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: not a safetensors file (its header is not JSON)") from error
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < expected:
        raise ValueError(f"{file}: truncated: expected {expected} bytes, found {size}")
    return header


def save_tensors(file: Path, tensors: dict[str, jax.Array]) -> None:
    """Writes a safetensors file, whole or not at all, that `transformers` loads."""
    temporary = file.with_suffix(".partial")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{file}: cannot be written: {error.strerror or error}") from error


def fingerprint(folder: Path) -> str:
    """Returns a hash of a model's configuration and weights, the same wherever the folder lies."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
