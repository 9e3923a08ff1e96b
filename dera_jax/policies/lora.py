"""Low-rank adapters to train, and how they are written: as PEFT's, for PEFT and `BASE+ADAPTER`.

Files of some families keep query, key and value as one module, of which PEFT's adapter has one A and one B.
Ours are three maps with an A each, which one module of their ranks' sum computes exactly:

    A = [A_q A_k A_v],  B = diag(B_q, B_k, B_v)
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from dera_jax import models
from dera_jax.common.files import write_bytes
from dera_jax.common.json_files import write_json
from dera_jax.models.keys import seed_key
from dera_jax.models.linear import Adapter
from dera_jax.models.reward import RewardConfig
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import names
from dera_jax.policies.adapters import PREFIX, AdapterFiles
from dera_jax.policies.weights import full_shapes

Modules = dict[str, dict[str, names.Source]]
"""Linear maps of a family's files, to ours that each of them holds and where."""
Targets = str | Sequence[str] | None


def adapted_maps(config: models.ModelConfig, name_map: names.NameMap, targets: Targets) -> list[str]:
    """Returns the paths of our linear maps that `targets` names.

    Args:
      targets: names of linear maps in the family's files, or their ends, such as `q_proj`; `all-linear`
        is all but the head; None those of queries and values, as PEFT's default is.

    Raises:
      ValueError: a name that fits none; with those that there are.
    """
    modules = _modules(config, name_map)
    if targets == "all-linear":
        chosen = [module for module, maps in modules.items() if "head" not in maps]
    elif targets is None:
        ours = ("query", "value")
        chosen = [module for module, maps in modules.items() if any(path.endswith(ours) for path in maps)]
    else:
        wanted = [targets] if isinstance(targets, str) else targets
        for name in wanted:
            if not _named(modules, name):
                there = ", ".join(sorted({*map(_last, modules)}))
                raise ValueError(f"targets: expected all-linear or some of {there}; found {name!r}")
        chosen = [module for name in wanted for module in _named(modules, name)]
        if not chosen:
            raise ValueError("targets: expected at least one name, found none")
    paths = {f"{path}.kernel" for module in chosen for path in modules[module]}
    return [path.removesuffix(".kernel") for path in full_shapes(config) if path in paths]


def add_adapters(
    config: models.ModelConfig, params: dict, paths: Sequence[str], rank: int, scale: float, seed: int
) -> tuple[models.ModelConfig, dict]:
    """Returns the same model with adapters that change nothing yet; arrays of the base are shared.

    B is 0 and A uniform in ±1/√inputs, PEFT's start (Kaiming with a = √5).

    Args:
      paths: of our linear maps, such as `blocks.3.attention.query`.

    Raises:
      ValueError: a rank beyond a map's own.
    """
    check_rank(config, paths, rank)
    shapes, flat = full_shapes(config), flatten(params)
    for path, key in zip(paths, jax.random.split(seed_key(seed), len(paths)), strict=True):
        inputs, outputs = shapes[f"{path}.kernel"]
        bound = inputs**-0.5
        start = jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound)
        flat[f"{path}.lora_a"] = start.astype(config.dtype)
        flat[f"{path}.lora_b"] = jnp.zeros((rank, outputs), config.dtype)
    adapters = tuple(Adapter(path, rank, scale) for path in paths)
    return replace(config, adapters=adapters), unflatten(flat)


def check_rank(config: models.ModelConfig, paths: Sequence[str], rank: int) -> None:
    """Raises ValueError where an adapter of a linear map would have more ranks than the map itself."""
    shapes = full_shapes(config)
    for path in paths:
        most = min(shapes[f"{path}.kernel"])
        if rank > most:
            inputs, outputs = shapes[f"{path}.kernel"]
            raise ValueError(
                f"rank: expected at most {most}, the smaller side of {path} ({inputs} × {outputs}), got {rank}"
            )


def write_adapter(
    folder: Path,
    config: models.ModelConfig | RewardConfig,
    params: dict,
    name_map: names.NameMap,
    base_name: str,
    start: AdapterFiles | None = None,
    heads: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes `adapter_config.json`, then `adapter_model.safetensors`, each whole or not at all.

    `lora_alpha` is scale · rank, whatever the scale was made from: stabilized ranks need no setting.

    Args:
      base_name: MODEL that the adapter stands on.
      start: the adapter that training began with; what it has in place of the base's parameters
        (`modules_to_save`) is kept.
      heads: of a reward model, by their names in files; saved whole.

    Raises:
      ValueError: a file cannot be written.
    """
    flat, scales = flatten(params), {adapter.path: adapter.scale for adapter in config.adapters}
    modules, tensors, ranks, alphas = _modules(config, name_map), {}, {}, {}
    for module, maps in modules.items():
        adapted = {path: source for path, source in maps.items() if path in scales}
        if adapted:
            a, b = _join(flat, adapted)
            tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
            ranks[module] = len(a)
            alphas[module] = _alpha(scales[next(iter(adapted))], len(a))
    kept = {name: t.read() for name, t in start.tensors.items() if ".lora_" not in name} if start else {}
    saved = start.settings.get("modules_to_save") if start else None
    if heads:
        kept |= heads
        saved = sorted({*(saved or ()), *(name.partition(".")[0] for name in heads)})
        task = "SEQ_CLS"
    else:
        task = "SEQ_2_SEQ_LM" if config.encoder_decoder else "CAUSAL_LM"
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    base, revision = _split_revision(base_name)
    settings = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": _targets(ranks, modules),
        "modules_to_save": saved,
        "fan_in_fan_out": name_map.inputs_first,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    tensors |= {f"{PREFIX}{name}": value for name, value in kept.items()}
    laid_out = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_json(folder / "adapter_config.json", settings)
    write_bytes(folder / "adapter_model.safetensors", save(laid_out, metadata={"format": "pt"}))


def _modules(config: models.ModelConfig | RewardConfig, name_map: names.NameMap) -> Modules:
    kernels = [path for path in full_shapes(config) if path.endswith(".kernel")]
    found: Modules = {}
    for path, source in names.sources(name_map, kernels, config.num_heads).items():
        maps = found.setdefault(source.name.removesuffix(".weight"), {})
        maps[path.removesuffix(".kernel")] = source
    return found


def _named(modules: Collection[str], name: str) -> list[str]:
    return [module for module in modules if f".{module}".endswith(f".{name}")]


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _join(flat: dict[str, jax.Array], maps: dict[str, names.Source]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a module's A [rank, inputs] and B [outputs, rank] of those of the maps that it holds."""
    paths = sorted(maps, key=lambda path: maps[path].part.number if maps[path].part else 0)
    a, b = ([np.asarray(flat[f"{path}.lora_{letter}"]) for path in paths] for letter in "ab")
    if all(np.array_equal(one, a[0]) for one in a):
        return a[0].T, _join_outputs(dict(zip(paths, b, strict=True)), maps)
    rank, before, blocks = sum(map(len, b)), 0, {}
    for path, block in zip(paths, b, strict=True):
        blocks[path] = np.pad(block, ((before, rank - before - len(block)), (0, 0)))
        before += len(block)
    return np.concatenate(a, axis=1).T, _join_outputs(blocks, maps)


def _join_outputs(kernels: dict[str, np.ndarray], maps: dict[str, names.Source]) -> np.ndarray:
    # PEFT's are [outputs, rank] whichever way the module's own weights lie.
    where = {path: replace(source, transposed=True) for path, source in maps.items()}
    (whole,) = names.join(kernels, where).values()
    return whole


def _alpha(scale: float, rank: int) -> float:
    """Returns α, scale · rank: the number that was given rather than its neighbour."""
    alpha = scale * rank
    rounded = round(alpha, 6)
    if rounded / rank != scale:
        return alpha
    return int(rounded) if rounded == int(rounded) else rounded


def _pattern(values: dict[str, Any], usual: float) -> dict[str, Any]:
    """Returns the values that are not the usual one, by patterns that no other module's name ends with."""
    odd = {module: value for module, value in values.items() if value != usual}
    short = {_last(module): value for module, value in odd.items()}
    if all(short.get(_last(module), usual) == value for module, value in values.items()):
        return short
    return {re.escape(module): value for module, value in odd.items()}


def _targets(adapted: Collection[str], modules: Modules) -> list[str]:
    """Returns the last parts of the names where they mean these modules and no others, or whole names."""
    short = {*map(_last, adapted)}
    return sorted(
        short if all(module in adapted for module in modules if _last(module) in short) else adapted
    )


def _split_revision(model: str) -> tuple[str, str | None]:
    name, _, revision = model.partition("@")
    return (model, None) if Path(model).is_dir() or not revision else (name, revision)
