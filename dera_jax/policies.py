"""Policies: language models ready to decode, from Hugging Face folders and back."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from dera_jax import models
from dera_jax.loading import families, hub, tensors
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


def load_policy(model: str, dtype: str = "auto") -> Policy:
    """Returns the policy of a MODEL argument.

    Raises:
      ValueError: files that are missing, broken or of an unsupported kind; weights that are not finite.
    """
    folder = hub.resolve(model)
    raw = families.read_config(folder)
    found = tensors.list_tensors(folder)
    if dtype == "auto":
        stored = {tensors.DTYPES.get(t.dtype, t.dtype) for t in found.values()}
        dtype = stored.pop() if len(stored) == 1 else "float32"
    config = families.model_config(folder, raw, dtype)
    return Policy(
        name=model,
        folder=folder,
        config=config,
        params=_read_params(folder, raw["model_type"], config, found),
        tokenizer=(tokenizer := load_tokenizer(folder)),
        eos_ids=_eos_ids(folder, raw, tokenizer),
        fingerprint=tensors.fingerprint(folder),
        beta=_read_json(folder / "manifest.json").get("beta"),
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
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = families.read_config(policy.folder)
    (folder / "config.json").write_text(json.dumps(raw | {"dtype": policy.config.dtype}, indent=2) + "\n")
    if (policy.folder / "generation_config.json").is_file():
        shutil.copyfile(policy.folder / "generation_config.json", folder / "generation_config.json")
    policy.tokenizer.save_pretrained(folder)
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    tensors.save_tensors(folder / "model.safetensors", named_tensors(policy.params, raw["model_type"]))


def with_params(policy: Policy, params: dict) -> Policy:
    """Returns `policy` with other parameters; nothing is compiled again."""
    return replace(policy, params=params)


def named_tensors(params: dict, model_type: str) -> dict[str, jax.Array]:
    """Returns parameters under the names and in the orientation of Hugging Face files."""
    flat = flatten(params)
    names = families.tensor_names(model_type, list(flat))
    return {names[path]: _orient(path, value) for path, value in flat.items()}


def _read_params(folder: Path, model_type: str, config, found: dict[str, tensors.Tensor]) -> dict:
    shapes = flatten(models.param_shapes(config))
    params = {}
    for path, name in families.tensor_names(model_type, list(shapes)).items():
        if name not in found:
            raise ValueError(f"{folder}: tensor {name} is missing from the safetensors files")
        expected = shapes[path].shape[::-1] if _transposed(path) else shapes[path].shape
        if found[name].shape != expected:
            raise ValueError(
                f"{found[name].file}: tensor {name}: expected shape {expected}, found {found[name].shape}"
            )
        value = _orient(path, found[name].read()).astype(config.dtype)
        if not jnp.isfinite(value).all():
            raise ValueError(f"{found[name].file}: tensor {name} holds NaN or infinite values")
        params[path] = value
    return unflatten(params)


def _transposed(path: str) -> bool:
    # Files keep linear maps as [outputs, inputs]; ours are [inputs, outputs].
    return path.endswith(".kernel")


def _orient(path: str, value: jax.Array) -> jax.Array:
    return value.T if _transposed(path) else value


def flatten(params: dict) -> dict[str, jax.Array]:
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
        _read_json(folder / "generation_config.json").get("eos_token_id"),
        raw.get("eos_token_id"),
        tokenizer.eos_token_id,
    ):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
