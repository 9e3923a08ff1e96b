"""Policies: language models ready to decode, from Hugging Face folders and back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from dera_jax import models
from dera_jax.files import write_json
from dera_jax.loading import families, files, hub, tensors
from dera_jax.tokenizer import check_same_vocabulary, load_tokenizer

TOY = Path(__file__).parent / "assets" / "toy"
"""The shipped pair."""


@dataclass(frozen=True)
class Policy:
    """One language model."""

    name: str
    """As the user wrote it."""
    folder: Path
    config: models.ModelConfig
    params: dict
    """Nested dict of arrays, as `models.param_shapes(config)`."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    """Ids that end a completion, of generation_config, config and tokenizer together."""
    fingerprint: str
    """Hash of configuration and weights."""
    beta: float | None = None
    """KL strength it was aligned with, where its manifest tells."""


def load_policies(
    reference: str | Path | None = None,
    aligned: str | Path | Sequence[str | Path] | None = None,
    dtype: str = "auto",
) -> tuple[Policy, ...]:
    """Returns the reference and the aligned policies, in that order.

    Args:
      reference: MODEL, a folder or hub id; None is the shipped toy pair.
      aligned: one MODEL or several (Appendix B).
      dtype: of parameters and activations: auto (the files' own), float32, bfloat16 or float16.

    Raises:
      ValueError: a model that cannot be loaded, or vocabularies that differ.
    """
    if reference is None and aligned is None:
        reference, aligned = TOY / "reference", TOY / "aligned"
    if reference is None or aligned is None:
        raise ValueError(
            "expected both a reference and an aligned model (or neither, for the shipped toy pair)"
        )
    if isinstance(aligned, str | Path):
        aligned = [aligned]
    policies = tuple(load_policy(str(model), dtype) for model in (reference, *aligned))
    for policy in policies[1:]:
        check_same_vocabulary(policies[0].tokenizer, policy.tokenizer, (policies[0].name, policy.name))
    return policies


def load_policy(model: str | Path, dtype: str = "auto") -> Policy:
    """Returns the policy of a MODEL argument.

    Raises:
      ValueError: files that are missing, broken or of an unsupported kind; weights that are not finite.
    """
    if dtype not in ("auto", *tensors.DTYPES.values()):
        raise ValueError(f"dtype: expected auto, {', '.join(tensors.DTYPES.values())}, got {dtype!r}")
    folder = hub.resolve(str(model))
    raw = families.read_config(folder)
    config = families.model_config(folder, raw, "float32")
    stored = _find_params(folder, raw["model_type"], config)
    if dtype == "auto":
        dtypes = {tensors.DTYPES[tensor.dtype] for tensor in stored.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return Policy(
        name=str(model),
        folder=folder,
        config=replace(config, dtype=dtype),
        params=_read_params(stored, dtype),
        tokenizer=(tokenizer := load_tokenizer(folder)),
        eos_ids=_eos_ids(folder, raw, tokenizer),
        fingerprint=tensors.fingerprint(folder),
        beta=files.read_object(folder / "manifest.json").get("beta"),
    )


def fresh_policy(model: str, seed: int, dtype: str = "float32") -> Policy:
    """Returns a policy with MODEL's configuration and tokenizer and random parameters."""
    folder = hub.resolve(model)
    raw = families.read_config(folder)
    config = families.model_config(folder, raw, "float32" if dtype == "auto" else dtype)
    tokenizer = load_tokenizer(folder)
    params = models.init_params(config, seed)
    return Policy(
        model, folder, config, params, tokenizer, _eos_ids(folder, raw, tokenizer), f"random-{seed}"
    )


def save_policy(policy: Policy, folder: Path, manifest: dict | None = None) -> None:
    """Writes a policy as a folder that `transformers` loads; the weights last, so a folder is whole.

    Args:
      manifest: how the policy was made; written as manifest.json.

    Raises:
      ValueError: the folder cannot be written.
    """
    raw = families.read_config(policy.folder)
    generation = files.read_object(policy.folder / "generation_config.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        policy.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror}") from error
    # `torch_dtype` is what older versions of transformers called it.
    settings = {name: value for name, value in raw.items() if name != "torch_dtype"}
    write_json(folder / "config.json", settings | {"dtype": policy.config.dtype})
    if generation:
        write_json(folder / "generation_config.json", generation)
    if manifest is not None:
        write_json(folder / "manifest.json", manifest)
    tensors.save_tensors(folder / "model.safetensors", named_tensors(policy.params, raw["model_type"]))


def with_params(policy: Policy, params: dict) -> Policy:
    """Returns `policy` with other parameters; nothing is compiled again."""
    return replace(policy, params=params)


def named_tensors(params: dict, model_type: str) -> dict[str, jax.Array]:
    """Returns parameters under the names and in the orientation of Hugging Face files."""
    flat = flatten(params)
    names = families.tensor_names(model_type, list(flat))
    return {names[path]: _orient(path, value) for path, value in flat.items()}


def _find_params(folder: Path, model_type: str, config: models.ModelConfig) -> dict[str, tensors.Tensor]:
    """Returns the tensor of each of our parameter paths, its kind and shape checked."""
    listed = tensors.list_tensors(folder)
    shapes = flatten(models.param_shapes(config))
    found = {}
    for path, name in families.tensor_names(model_type, list(shapes)).items():
        if name not in listed:
            raise ValueError(f"{folder}: tensor {name} is missing from the safetensors files")
        found[path] = tensor = listed[name]
        expected = shapes[path].shape[::-1] if _transposed(path) else shapes[path].shape
        if tensor.shape != expected:
            raise ValueError(f"{tensor.file}: tensor {name}: expected shape {expected}, found {tensor.shape}")
        if tensor.dtype not in tensors.DTYPES:
            raise ValueError(
                f"{tensor.file}: tensor {name}: expected one of {', '.join(tensors.DTYPES)}, "
                f"found {tensor.dtype}"
            )
    return found


def _read_params(stored: dict[str, tensors.Tensor], dtype: str) -> dict:
    params = {}
    for path, tensor in stored.items():
        params[path] = _orient(path, tensor.read()).astype(dtype)
        if not jnp.isfinite(params[path]).all():
            raise ValueError(f"{tensor.file}: tensor {tensor.name} holds NaN or infinite values as {dtype}")
    return unflatten(params)


def _transposed(path: str) -> bool:
    # Files keep linear maps as [outputs, inputs]; ours are [inputs, outputs].
    return path.endswith(".kernel")


def _orient(path: str, value: jax.Array) -> jax.Array:
    return value.T if _transposed(path) else value


def flatten(params: dict) -> dict[str, Any]:
    """Returns nested parameters as one dict with dotted paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(key.key) for key in path): value for path, value in leaves}


def unflatten(flat: dict[str, jax.Array]) -> dict:
    """Returns the nested dict of dotted paths; numbers become list positions."""
    nested: dict = {}
    for path, value in flat.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        inner = nested
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return nested


def _eos_ids(folder: Path, raw: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    ids: set[int] = set()
    for value in (
        files.read_object(folder / "generation_config.json").get("eos_token_id"),
        raw.get("eos_token_id"),
        tokenizer.eos_token_id,
    ):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))
