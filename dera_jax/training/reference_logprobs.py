"""Log-probabilities of given completions under a model that does not change, computed once and kept on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from dera_jax.common.files import read_bytes, write_bytes
from dera_jax.data.batches import make_batch
from dera_jax.policies.policy import Policy
from dera_jax.scoring.logprobs import compiled_logprobs


def reference_logprobs(
    policy: Policy,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    rows: int,
    folder: Path,
    *,
    progress: bool = False,
) -> Float[np.ndarray, " texts"]:
    """Returns log π(y|x) of each (prompt, completion), in nats, from FOLDER where they are there already.

    The file's name is a hash of model and texts, so another model or other data have another file.

    Args:
      rows: of a batch.
      progress: whether a bar shows it.
    """
    told = hashlib.sha256(f"{policy.fingerprint} {policy.config.dtype} {policy.config.quantization}".encode())
    for prompt, completion in texts:
        told.update(np.array([len(prompt), *prompt, *completion], np.int64).tobytes())
    path = folder / f"reference_logprobs-{told.hexdigest()[:16]}.safetensors"
    if path.exists():
        if (kept := _kept(path, len(texts))) is not None:
            return kept
        path.unlink()  # not what was written; made again
    found = _compute(policy, texts, rows, progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save({"logprobs": found}))
    return found


def _kept(path: Path, count: int) -> np.ndarray | None:
    """Returns the `count` numbers that a file holds, None if it is damaged or of something else."""
    try:
        found = load(read_bytes(path)).get("logprobs")
    except SafetensorError:
        return None
    whole = found is not None and found.shape == (count,) and found.dtype == np.float32
    return found if whole and np.isfinite(found).all() else None


def _compute(policy: Policy, texts: Sequence, rows: int, progress: bool) -> Float[np.ndarray, " texts"]:
    found = np.zeros(len(texts), np.float32)
    # Texts of about one length together: the longest of a batch decides its shape.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
    tight = not policy.config.encoder_decoder
    starts = range(0, len(order), rows)
    bar = {"unit": "batch", "desc": "reference", "dynamic_ncols": True, "leave": False}
    for start in tqdm(starts, **bar, disable=not progress):
        part = order[start : start + rows]
        batch = make_batch([texts[i][0] for i in part], [texts[i][1] for i in part], rows, tight=tight)
        logprobs = np.asarray(compiled_logprobs(policy.config, policy.params, batch), np.float32)
        found[part] = logprobs.sum(axis=1)[: len(part)]
    return found
