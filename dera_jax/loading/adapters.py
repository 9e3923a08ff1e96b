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
from dera_jax.files import read_object
from dera_jax.loading import names, tensors
from dera_jax.loading.weights import full_shapes, is_quantized
from dera_jax.models.linear import PRECISION, Adapter, quantize_kernel
from dera_jax.trees import flatten, unflatten

PREFIX = "base_model.model."
"""Of every tensor's name in an adapter's file."""
REFUSED = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "kasa_config": None,
}
"""Settings that change what an adapter computes; supported is only their default."""


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
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: expected a PEFT adapter, found no adapter_config.json")
    settings = read_object(path)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type: expected LORA, found {settings.get('peft_type')}")
    for name, expected in REFUSED.items():
        if settings.get(name) not in (expected, None, False):
            raise ValueError(
                f"{path}: {name}: expected {expected}, found {settings[name]}; merge it with PEFT first"
            )
    file = folder / "adapter_model.safetensors"
    if not file.is_file() and (folder / "adapter_model.bin").exists():
        raise ValueError(
            f"{folder}: expected adapter_model.safetensors, found adapter_model.bin; pickles are not read: "
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
    if (folder := Path(trained_on)).is_dir():
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
            f"{adapter.folder}: the adapter was trained on {trained_on}, here it stands on {name}; if they are "
            f"the same, change base_model_name_or_path in {adapter.folder / 'adapter_config.json'}"
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
    flat, used = flatten(params), set()
    if config.tie_embeddings and _unties(adapter, name_map):
        config = replace(config, tie_embeddings=False)
        flat["head.kernel"] = flat["embed.embedding"].T
    low_rank = []
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
            rank = adapter.tensors[pair[0]].shape[0]
            own = _low_rank(adapter, pair, ours, source, base, flat[path].shape, config.dtype)
            flat |= own
            found = own[f"{ours}.lora_b"].shape[0]
            low_rank.append(Adapter(ours, found, _scale(adapter.settings, module, rank)))
            saved |= set(pair)
        used |= saved
    for name in adapter.tensors:
        if name not in used:
            module = re.split(r"\.(?:base_layer|lora_\w+|weight|bias)\b", name)[0]
            there = any(source.name.startswith(f"{module}.") for source in sources.values())
            trained_on = adapter.settings.get("base_model_name_or_path") or "another model"
            raise ValueError(
                f"{adapter.folder}: adapters of {module} are not supported ({name})"
                if there
                else f"{adapter.folder}: the adapter was trained on {trained_on} (adapter_config.json), not on "
                f"{base}, which has no {module}"
            )
    return replace(config, adapters=tuple(low_rank)), unflatten(flat)


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


def _unties(adapter: AdapterFiles, name_map: names.NameMap) -> bool:
    """Returns whether the head, tied to the embedding in the base, is another matrix with the adapter."""
    head, embedding = (str(name_map.names[path]) for path in ("head.kernel", "embed.embedding"))
    module = head.removesuffix("weight")
    return embedding in adapter.tensors or any(name.startswith(module) for name in adapter.tensors)


def _saved(
    tensor: tensors.Tensor, path: str, source: names.Source, base: str, config: models.ModelConfig
) -> dict:
    """Returns a parameter that the adapter has in place of the base's (`modules_to_save`)."""
    value = jnp.asarray(source.take(tensor.read()), config.dtype)
    _check_shape(tensor, source.shape(full_shapes(config)[path]), base)
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
        raise ValueError(f"{adapter.folder}: {pair[1]} is missing beside {pair[0]}")
    rank, source = a.shape[0], replace(source, transposed=True)
    _check_shape(a, (rank, shape[0]), base)
    _check_shape(b, source.shape((rank, shape[1])), base)
    ours, whole = a.read().T, b.read()
    theirs = source.take(whole)
    if source.part and _is_block_diagonal(whole, source, rank):
        block = _block(source.part, rank)
        ours, theirs = ours[:, block], theirs[block]
    return {f"{path}.lora_a": jnp.asarray(ours, dtype), f"{path}.lora_b": jnp.asarray(theirs, dtype)}


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
            f"{tensor.file}: tensor {tensor.name}: expected shape {expected} for {base}, found {tensor.shape}: "
            "an adapter for another base"
        )


def _scale(settings: dict, module: str, rank: int) -> float:
    """Returns α/rank, or α/√rank with rank stabilization (arXiv:2312.03732)."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
