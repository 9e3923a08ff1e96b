"""Safetensors files: what is in them, read piece by piece, written whole or not at all."""

import hashlib
import math
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dera_jax.common.files import put, staging
from dera_jax.common.folders import no_such_file
from dera_jax.common.json_files import check_type, read_object, write_json
from dera_jax.common.shown import shown

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHARD_SIZE = 5 * 10**9
"""Bytes of a weight file that we write, at most, unless one tensor is larger."""
INDEX = "model.safetensors.index.json"
"""Names the file of each tensor."""
COMPARED = 2**22
"""Values that are compared at a time."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not yet read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns its values, or those of a part; only the part's own bytes are read."""
        with safe_open(self.file, framework="numpy") as opened:
            return opened.get_slice(self.name)[index or ...]


def equal(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors hold the same values; reads no further than the first that differ."""
    if one.shape != other.shape or not {one.dtype, other.dtype} <= DTYPES.keys():
        return False
    rows, *rest = one.shape or (1,)
    step = max(1, COMPARED // max(math.prod(rest), 1))
    with (
        safe_open(one.file, framework="numpy") as first,
        safe_open(other.file, framework="numpy") as second,
    ):
        parts = first.get_slice(one.name), second.get_slice(other.name)
        for start in range(0, rows, step):
            # Of two types, each value is exact in float32.
            a, b = (part[start : min(start + step, rows)].astype(np.float32) for part in parts)
            if not np.array_equal(a, b):
                return False
    return True


def has_weights(folder: Path) -> bool:
    """Returns whether safetensors files of a model lie in a folder."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model folder: the one file, else those that the index names.

    Raises:
      ValueError: none, a broken index, or a file that it names is missing.
    """
    # In transformers' order: an index beside the one file is of a model that was there before.
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(
                f"{shown(index, 200)}: expected an object 'weight_map' from tensors to files, found none"
            )
        return _named_files(index, names)
    pickles = sorted(folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{shown(folder, 200)}: expected model.safetensors, found only {shown(pickles[0].name, 200)}; "
            "pickles are not read: "
            "convert with transformers' save_pretrained(..., safe_serialization=True)"
        )
    raise ValueError(f"{shown(folder, 200)}: expected model.safetensors, found none")


def _named_files(index: Path, names: dict) -> list[Path]:
    """Returns the files that an index names, all of them in its own folder."""
    where = shown(index, 200)
    try:
        check_type(names, dict[str, str])
    except ValueError as error:
        raise ValueError(f"{where}: weight_map: {error}") from None
    for name in (found := sorted(set(names.values()))):
        if (
            not name
            or name in (".", "..")
            or "/" in name
            or "\0" in name
            or not name.endswith(".safetensors")
        ):
            raise ValueError(
                f"{where}: weight_map: expected names of safetensors files beside it, found "
                f"{shown(repr(name), 200)}"
            )
        if not os.path.isfile(index.parent / name):  # whose name may be too long
            raise ValueError(f"{where}: names {shown(name, 200)}, which is missing")
    return [index.parent / name for name in found]


def list_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a model folder by name, from the files' headers.

    Raises:
      ValueError: a file is cut short or not a safetensors file.
    """
    return {name: tensor for file in weight_files(folder) for name, tensor in list_file(file).items()}


def list_file(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, from its header.

    Raises:
      ValueError: it is not there, cut short or not a safetensors file.
    """
    where = shown(file, 200)
    if not file.is_file():
        raise ValueError(f"{where}: {no_such_file(file)}")
    try:
        tensors = {}
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                part = opened.get_slice(name)
                tensors[name] = Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError, ValueError) as error:
        size, why = file.stat().st_size, shown(" ".join(str(error).split()), 300)
        raise ValueError(f"{where}: not a whole safetensors file ({size} bytes): {why}") from error
    if not tensors:
        raise ValueError(f"{where}: expected tensors, found none")
    return tensors


def save_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a model's weights so that `transformers` loads them: one file, or shards and their index.

    At any moment a reader finds the weights that were there, the new ones, or none; never some of each.

    Raises:
      ValueError: a file cannot be written (disk full, no such folder, no permission).
    """
    plan = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_SIZE,
    )
    names = sorted(plan.filename_to_tensors)
    with staging(folder, names[0]) as place:
        for name in names:
            members = plan.filename_to_tensors[name]
            _save_file(place / name, {member: tensors[member] for member in members})
        if plan.is_sharded:
            # Without their index, shards are read by nobody.
            (folder / INDEX).unlink(missing_ok=True)
            write_json(place / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})
            names.append(INDEX)
        for name in names:
            put(place / name, folder)
        _remove_others(folder, names)


def _remove_others(folder: Path, names: list[str]) -> None:
    """Removes weights that an earlier model of the folder left: they would be read instead, or for nothing."""
    # The whole file and the index first: it is they that are read.
    for file in (folder / "model.safetensors", folder / INDEX, *sorted(folder.glob("model-*.safetensors"))):
        if file.name not in names:
            file.unlink(missing_ok=True)


def _save_file(file: Path, tensors: dict[str, np.ndarray]) -> None:
    # The library writes an array's memory as it lies.
    laid_out = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(laid_out, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ValueError(f"{file.parent.parent / file.name}: cannot be written: {error}") from error


def fingerprint(config: Path, files: list[Path]) -> str:
    """Returns a hash of a configuration and of weight files, the same wherever they lie."""
    digest = hashlib.sha256(config.read_bytes())
    for file in files:
        digest.update(sha256(file))
    return digest.hexdigest()[:16]


def mark(fingerprint: str, what: str) -> str:
    """Returns the hash of a model whose files of that hash are read in another way."""
    return hashlib.sha256(f"{fingerprint} {what}".encode()).hexdigest()[:16]


def start_fingerprint(config: Path, files: list[Path]) -> Callable[[], str]:
    """Begins to hash beside what else is done, such as reading the same files; returns what waits for the hash.

    Nobody has to wait: a command that fails meanwhile ends at once.
    """
    found: Future[str] = Future()

    def work() -> None:
        try:
            found.set_result(fingerprint(config, files))
        except BaseException as error:  # of whoever waits
            found.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return found.result


def sha256(file: Path) -> bytes:
    """Returns a file's SHA-256."""
    # The hub's cache names large files by this very hash.
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):
        return bytes.fromhex(blob)
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
