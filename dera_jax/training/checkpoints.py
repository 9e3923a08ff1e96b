"""Training states on disk: saved beside the training, whole or not at all, and checked when read."""

import hashlib
import logging
import os
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped, UInt32
from orbax.checkpoint import v1 as ocp

from dera_jax.common.json_files import decode_json, encode_json, read_json, write_json
from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown


class Record(TypedDict):
    """What record.json holds."""

    step: NotRequired[int]
    """Older versions told it by the folder's name alone."""
    facts: dict[str, Any]
    leaves: list[str]
    sums: list[int]
    files: dict[str, str]
    sha256: str


class Checkpoints(AbstractContextManager):
    """Training states on disk, newest last. A context manager: leaving it waits for the save under way.

    `STEP/` holds the arrays (`state/`, by orbax) and `record.json`: the step, the caller's facts, each
    array's name, type and checksum, each file's SHA-256. It is called `STEP.saving/` until it is whole.
    """

    def __init__(self, folder: Path, keep: int = 2, tell: Tell = warnings.warn):
        """Opens a folder of checkpoints, which only `save` makes or changes; the `keep` newest stay.

        Args:
          tell: hears of damaged ones.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder, self.keep, self._tell = Path(folder).absolute(), keep, tell
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future | None = None
        # Orbax tells every step it takes, and of a full disk by tracebacks, beside what it raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)

    def __exit__(self, *_) -> None:
        self.close()

    def save(self, step: int, state: PyTree, facts: dict) -> None:
        """Saves a state in the background, once the save before it has ended.

        The next update may reuse (donate) the state at once. Later steps in the folder are removed:
        the training that made them has been rewound.

        Args:
          step: of the state, 0 or more.
          state: of jax arrays, and numbers, which are restored as arrays.
          facts: to keep beside it, of what JSON knows. They are copied now.

        Raises:
          ValueError: it cannot be saved, or the save before it could not.
        """
        self.wait()
        facts = decode_json(encode_json(facts))
        leaves, arrays = _leaves(state)
        # One after the other: several programs at once may wait for one another where devices share threads.
        sums = [int(checksum(array)) for array in arrays]
        saving = self._make_room(step)
        with _orbax():
            written = ocp.save_async(saving / "state", _stored(arrays))

        def finish() -> None:
            written.result()  # of all processes
            if jax.process_index() == 0:
                _write_record(saving, {"step": step, "facts": facts, "leaves": leaves, "sums": sums})
                self._admit(saving, step)

        self._pending = self._worker.submit(finish)

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict] | None:
        """Returns step, state and facts of the newest checkpoint that is whole; None if there is none.

        Damaged ones are passed over, which `tell` hears in one line.

        Args:
          like: arrays (donated ones too) or `jax.ShapeDtypeStruct`s: the structure, shapes, types and
            shardings to restore. It may have been saved from other shardings.

        Raises:
          ValueError: the checkpoint has other arrays; names the first difference.
        """
        self.wait()
        found, damages = None, []
        for step in reversed(steps_in(self.folder)):
            try:
                found = step, *_read(self.folder / str(step), like)
                break
            except _Damaged as damage:
                damages.append(f"step {step}: {damage}")
        if damages:
            start = found[0] if found else 0
            self._tell(f"CHECKPOINT: damaged ({'; '.join(damages)}); going on from step {start}")
        return found

    def wait(self) -> None:
        """Returns when the save under way is whole on disk; raises ValueError if it could not be saved."""
        pending, self._pending = self._pending, None
        try:
            if pending:
                pending.result()
        except Exception as error:
            raise ValueError(f"cannot save in {self.folder}: {_reason(error)}") from error

    def close(self) -> None:
        """Waits, as `wait` does, and ends the thread that saves."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _make_room(self, step: int) -> Path:
        """Returns the folder to save in, after removing what a killed process left."""
        saving = self.folder / f"{step}.saving"
        try:
            if jax.process_index() == 0:
                for left in [*self.folder.glob("*.saving"), *self.folder.glob("*.gone")]:
                    shutil.rmtree(left)
                saving.mkdir(parents=True)
        except OSError as error:
            raise ValueError(f"cannot save in {self.folder}: {error.strerror}") from None
        return saving

    def _admit(self, saving: Path, step: int) -> None:
        """Makes a whole checkpoint the newest."""
        for other in steps_in(self.folder):
            if other >= step:
                self._remove(other)
        saving.rename(self.folder / str(step))
        for other in steps_in(self.folder)[: -self.keep]:
            self._remove(other)

    def _remove(self, step: int) -> None:
        # Renamed first: a checkpoint half removed would look like a damaged one.
        shutil.rmtree((self.folder / str(step)).rename(self.folder / f"{step}.gone"))


def _reason(error: Exception) -> str:
    """Returns why a state could not be saved: the system's words, where a library tells its number."""
    text = str(error).strip()
    if number := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(number[1]))
    return text.split("\n")[0] or type(error).__name__


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, whole or damaged, newest last."""
    names = [path.name for path in folder.glob("*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


class _Damaged(Exception):
    """A checkpoint is not what was saved; says why."""


@jax.jit
def checksum(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Returns Σᵢ mix(wᵢ ⊕ mix(i)) mod 2³² over an array's words wᵢ, whatever its sharding.

    A word has 32 bits, or the type's fewer. `mix` is one to one, so the change of one word always
    changes the sum; other changes do but for one in 2³².
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    bits = 8 * min(array.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(array, f"uint{bits}").astype(jnp.uint32)
    # Positions axis by axis, as flattening would gather a sharded array.
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(position)), dtype=jnp.uint32)


def _mix(words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns the last steps of MurmurHash3, one to one on 32 bits."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _leaves(tree: PyTree) -> tuple[list[str], list]:
    """Returns a tree's leaves, in words (`.params['w']: float32[8, 2]`) and as arrays."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    arrays = [leaf if hasattr(leaf, "sharding") else jnp.asarray(leaf) for leaf in leaves]
    named = zip(map(jax.tree_util.keystr, paths), arrays, strict=True)
    return [f"{name}: {array.dtype}{list(array.shape)}" for name, array in named], arrays


def _stored(leaves: list) -> dict:
    """Returns what orbax stores: a flat dict, without empty arrays, which it refuses."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if 0 not in leaf.shape}


def _orbax() -> ocp.Context:
    context = ocp.Context()
    # Weights and moments hardly get smaller, and saving would take several times as long.
    context.array_options.saving.use_compression = False
    return context


def _digests(folder: Path) -> dict[str, str]:
    """Returns each file's SHA-256; the record, which holds them, is not among them."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    digests.pop("record.json", None)
    return digests


def _write_record(folder: Path, record: dict) -> None:
    record["files"] = _digests(folder)
    digest = hashlib.sha256(encode_json(record)).hexdigest()
    write_json(folder / "record.json", {**record, "sha256": digest})


def _read_record(folder: Path) -> dict:
    """Returns the record, after it and all files have been checked."""
    try:
        record = read_json(folder / "record.json", Record)
    except ValueError:
        raise _Damaged("record.json cannot be read") from None
    digest = record.pop("sha256")
    if hashlib.sha256(encode_json(record)).hexdigest() != digest:
        raise _Damaged("record.json has changed")
    if str(record.get("step", folder.name)) != folder.name:
        raise _Damaged(f"it is that of step {record['step']}")
    found = _digests(folder)
    for name, expected in record["files"].items():
        if found.get(name) != expected:
            raise _Damaged(f"{shown(name, 80)} {'has changed' if name in found else 'is missing'}")
    return record


def _read(folder: Path, like: PyTree) -> tuple[PyTree, dict]:
    record = _read_record(folder)
    expected, leaves = _leaves(like)
    for there, here in zip_longest(record["leaves"], expected, fillvalue="nothing"):
        if there != here:
            raise ValueError(
                f"{folder} is of another training: it holds {shown(there, 200)}, expected was {here}"
            )
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one) for x in leaves]
    # Only files that are as they were saved reach orbax, whose failures leave tracebacks of their own behind.
    try:
        with _orbax():
            stored = ocp.load(folder / "state", _stored(wanted))
    except Exception as error:  # of many kinds, for a record that tells of other files
        raise _Damaged(f"its arrays cannot be read ({type(error).__name__})") from None
    arrays = [
        stored[str(i)] if str(i) in stored else jnp.zeros(x.shape, x.dtype, device=x.sharding)
        for i, x in enumerate(wanted)
    ]
    sums = [int(checksum(array)) for array in arrays]
    if len(record["sums"]) != len(sums):
        raise _Damaged("record.json has another number of sums")
    for leaf, saved, found in zip(expected, record["sums"], sums, strict=True):
        if int(found) != saved:
            raise _Damaged(f"{leaf} is not what was saved")
    return jax.tree.unflatten(jax.tree.structure(like), arrays), record["facts"]
