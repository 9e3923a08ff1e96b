"""PEFT adapters: low-rank changes of a base model whose own parameters stay where they are."""

import hashlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.models.linear import PRECISION, Adapter, quantize_kernel
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import adapter_settings, hub, names, tensors
from dera_jax.policies.weights import check_finite, check_kind, full_shapes, is_quantized

PREFIX = "base_model.model."
"""Of every tensor's name in an adapter's file."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk."""

    folder: Path
    settings: dict
    tensors: dict[str, tensors.Tensor]
    """By their names without what every name begins with."""


def read_adapter(folder: Path) -> AdapterFiles:
    """Returns what `adapter_config.json` and the header of `adapter_model.safetensors` say.

    Raises:
      ValueError: files that are missing or broken, or a kind of adapter that is not supported.
    """
    settings = adapter_settings.read_settings(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file() and (folder / "adapter_model.bin").exists():
        raise ValueError(
            f"{shown(folder, 200)}: expected adapter_model.safetensors, found adapter_model.bin; pickles are not read: "
            "load it with PEFT and save_pretrained(..., safe_serialization=True)"
        )
    listed = tensors.list_file(file)
    return AdapterFiles(folder, settings, {name.removeprefix(PREFIX): t for name, t in listed.items()})


def fingerprint(adapter: AdapterFiles, base: str) -> str:
    """Returns a hash of the adapter and of its base's hash."""
    config = adapter.folder / "adapter_config.json"
    own = tensors.fingerprint(config, [adapter.folder / "adapter_model.safetensors"])
    return hashlib.sha256(f"{base}+{own}".encode()).hexdigest()[:16]


def check_base(adapter: AdapterFiles, name: str, fingerprint_of_base: str) -> None:
    """Raises ValueError where the adapter says that it was trained on another model than `name`.

    A model that it names by a folder is compared by its files, one of the hub by its name.
    """
    trained_on = adapter.settings.get("base_model_name_or_path")
    if not trained_on:
        return
    if hub.is_folder(trained_on):
        folder = Path(trained_on)
        if not (folder / "config.json").is_file():
            return
        same = fingerprint_of_base == tensors.fingerprint(
            folder / "config.json", tensors.weight_files(folder)
        )
    else:
        # A folder may hold any model of the hub.
        same = Path(name).is_dir() or trained_on.lower() == name.partition("@")[0].lower()
    if not same:
        raise ValueError(
            f"{shown(adapter.folder, 200)}: the adapter was trained on {shown(trained_on, 200)}, here it stands on "
            f"{shown(name, 200)}; if they are the same, change base_model_name_or_path in "
            f"{shown(adapter.folder / 'adapter_config.json', 200)}"
        )


def apply_adapter(
    adapter: AdapterFiles, base: str, config: models.ModelConfig, params: dict, name_map: names.NameMap
) -> tuple[models.ModelConfig, dict]:
    """Returns configuration and parameters of the base with the adapter; arrays of the base are shared.

    Args:
      base: name of the base, for errors.

    Raises:
      ValueError: the adapter changes what the base does not have, or has in another shape.
    """
    if _unties(adapter, name_map):
        config, params = untie(config, params)
    flat, used = flatten(params), set()
    adapted = []
    # What quantization put beside a kernel is in no file.
    paths = [path for path in flat if not path.endswith(".kernel_scale")]
    sources = names.sources(name_map, paths, config.num_heads)
    for path, source in sources.items():
        module, _, kind = source.name.rpartition(".")
        saved = {source.name, f"{module}.base_layer.{kind}"} & adapter.tensors.keys()
        for name in saved:
            flat |= _saved(adapter.tensors[name], path, source, base, config)
        pair = [f"{module}.lora_{letter}.weight" for letter in "AB"]
        if path.endswith(".kernel") and pair[0] in adapter.tensors:
            ours = path.removesuffix(".kernel")
            own = _low_rank(adapter, pair, ours, source, base, flat[path].shape, config.dtype)
            flat |= own
            adapted.append((ours, own[f"{ours}.lora_b"].shape[0], module, adapter.tensors[pair[0]].shape[0]))
            saved |= set(pair)
        used |= saved
    for name in adapter.tensors:
        if name not in used:
            raise ValueError(_unused(adapter, name, base, sources))
    alphas = adapter_settings.alphas(
        adapter.folder, adapter.settings, [module for _, _, module, _ in adapted]
    )
    low_rank = tuple(
        Adapter(ours, found, _scale(adapter.settings, alpha, rank))
        for (ours, found, _, rank), alpha in zip(adapted, alphas, strict=True)
    )
    return replace(config, adapters=low_rank), unflatten(flat)


def _unused(adapter: AdapterFiles, name: str, base: str, sources: dict[str, names.Source]) -> str:
    """Returns why a tensor has no place in the base."""
    module = re.split(r"\.(?:base_layer|lora_\w+|weight|bias)\b", name)[0]
    folder, told = shown(adapter.folder, 200), shown(module, 200)
    if any(source.name.startswith(f"{module}.") for source in sources.values()):
        return f"{folder}: adapters of {told} are not supported ({shown(name, 200)})"
    trained_on = shown(adapter.settings.get("base_model_name_or_path") or "another model", 200)
    return (
        f"{folder}: the adapter was trained on {trained_on} (adapter_config.json), not on {shown(base, 200)}, "
        f"which has no {told}"
    )


def merge_adapters(config: models.ModelConfig, params: dict) -> tuple[models.ModelConfig, dict]:
    """Returns the same model with its adapters added to its kernels: W + scale · A B, summed in float32."""
    flat = flatten(params)
    for adapter in config.adapters:
        kernel, a, b = (flat.pop(f"{adapter.path}.{name}") for name in ("kernel", "lora_a", "lora_b"))
        exact = kernel.astype(jnp.float32) + adapter.scale * jnp.matmul(
            a.astype(jnp.float32), b.astype(jnp.float32), precision=PRECISION
        )
        flat[f"{adapter.path}.kernel"] = exact.astype(kernel.dtype)
    return replace(config, adapters=()), unflatten(flat)


def untie(config: models.ModelConfig, params: dict) -> tuple[models.ModelConfig, dict]:
    """Returns the same model with a head that is a matrix of its own."""
    if not config.tie_embeddings:
        return config, params
    flat = flatten(params)
    flat["head.kernel"] = flat["embed.embedding"].T
    return replace(config, tie_embeddings=False), unflatten(flat)


def _unties(adapter: AdapterFiles, name_map: names.NameMap) -> bool:
    """Returns whether the head, tied to the embedding in the base, is another matrix with the adapter."""
    head, embedding = (str(name_map.names[path]) for path in ("head.kernel", "embed.embedding"))
    module = head.removesuffix("weight")
    return embedding in adapter.tensors or any(name.startswith(module) for name in adapter.tensors)


def _saved(
    tensor: tensors.Tensor, path: str, source: names.Source, base: str, config: models.ModelConfig
) -> dict:
    """Returns a parameter that the adapter has in place of the base's (`modules_to_save`)."""
    _check_shape(tensor, source.shape(full_shapes(config)[path]), base)
    value = _array(source.take(tensor.read()), tensor, config.dtype)
    if config.quantization and is_quantized(path):
        parts = quantize_kernel(value, config.quantization)
        return {path.removesuffix("kernel") + name: part for name, part in parts.items()}
    return {path: value}


def _low_rank(
    adapter: AdapterFiles,
    pair: list[str],
    path: str,
    source: names.Source,
    base: str,
    shape: tuple,
    dtype: str,
) -> dict[str, jax.Array]:
    """Returns A and B of our linear map `path`.

    Where a file keeps several maps as one, each has its own block of A and B, or else all share A.
    """
    a, b = map(adapter.tensors.get, pair)
    if b is None:
        raise ValueError(f"{shown(adapter.folder, 200)}: {pair[1]} is missing beside {pair[0]}")
    # One without ranks is none.
    rank, source = max(a.shape[0], 1) if a.shape else 1, replace(source, transposed=True)
    _check_shape(a, (rank, shape[0]), base)
    _check_shape(b, source.shape((rank, shape[1])), base)
    ours, whole = a.read().T, b.read()
    theirs = source.take(whole)
    if source.part and _is_block_diagonal(whole, source, rank):
        block = _block(source.part, rank)
        ours, theirs = ours[:, block], theirs[block]
    return {f"{path}.lora_a": _array(ours, a, dtype), f"{path}.lora_b": _array(theirs, b, dtype)}


def _array(values: np.ndarray, tensor: tensors.Tensor, dtype: str) -> jax.Array:
    """Returns a tensor's values, or some of them, all finite."""
    found = jnp.asarray(values, dtype)
    check_finite(np.asarray(found), tensor, dtype)
    return found


def _is_block_diagonal(whole: np.ndarray, source: names.Source, rank: int) -> bool:
    """Returns whether B of several maps joins one B of each, as `lora.write_adapter` does."""
    if rank % source.part.count:
        return False
    for number in range(source.part.count):
        part = replace(source.part, number=number)
        rest = np.delete(replace(source, part=part).take(whole), _block(part, rank), axis=0)
        if rest.any():
            return False
    return True


def _block(part: names.Part, rank: int) -> slice:
    """Returns the ranks that are a part's own."""
    each = rank // part.count
    return slice(part.number * each, (part.number + 1) * each)


def _check_shape(tensor: tensors.Tensor, expected: tuple[int, ...], base: str) -> None:
    if tensor.shape != expected:
        raise ValueError(
            f"{shown(tensor.file, 200)}: tensor {shown(tensor.name, 200)}: expected shape {expected} for "
            f"{shown(base, 200)}, found {tensor.shape}: an adapter for another base"
        )
    check_kind(tensor)


def _scale(settings: dict, alpha: float, rank: int) -> float:
    """Returns α/rank, or α/√rank with rank stabilization (arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
