"""Models by their configuration alone: no weights are read, and none are fetched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.models.linear import Adapter
from dera_jax.policies import adapter_settings, families, hub, lora, value_heads

_MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA2 = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA3 = _LLAMA2 | {
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
_GEMMA2 = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
}
# From config.json of these repositories on https://huggingface.co:
#   mistralai/Mistral-7B-v0.1  meta-llama/Llama-2-7b-hf  meta-llama/Llama-3.2-1B  meta-llama/Llama-3.1-8B
#   meta-llama/Llama-3.1-70B  Qwen/Qwen2.5-0.5B  Qwen/Qwen2.5-7B  google/gemma-2-2b  google/gemma-2-9b
SIZES = {
    "mistral-7b": _MISTRAL,
    "llama-2-7b": _LLAMA2,
    "llama-3.2-1b": _LLAMA3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
        "rope_scaling": _LLAMA3["rope_scaling"] | {"factor": 32.0},
    },
    "llama-3.1-8b": _LLAMA3,
    "llama-3.1-70b": _LLAMA3
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "qwen2.5-0.5b": _QWEN2
    | {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": _QWEN2,
    "gemma-2-2b": _GEMMA2
    | {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "gemma-2-9b": _GEMMA2,
}
"""Settings of published models by a short name."""
LORA = "lora:"
"""What stands for adapters of some rank on all linear maps but the head: mistral-7b+lora:64."""
CONFIGS = ("config.json", "adapter_config.json")
"""All that is read of a model."""


@dataclass(frozen=True)
class Sized:
    """A model as far as its configuration tells."""

    name: str
    base: str
    """Its name without adapters: models on one base share its weights."""
    config: models.ModelConfig

    @property
    def base_key(self) -> tuple:
        """What models have in common that share weights."""
        return self.base, self.config.dtype, self.config.quantization


def read_size(model: str, dtype: str = "bfloat16", quantize: str | None = None) -> Sized:
    """Returns the model of a MODEL argument or of a name in `SIZES`, either with `+lora:RANK`.

    Raises:
      ValueError: neither a folder, a hub id nor a known name; a configuration that is not supported.
    """
    base, adapter = hub.split_adapter(model)
    if hub.is_folder(model) and value_heads.is_value_folder(Path(model)):
        # The head itself is less than a thousandth of it.
        return read_size(value_heads.read_settings(Path(model))["reference"], dtype, quantize)
    raw, folder = _settings(base)
    config = families.model_config(folder, raw)
    config = replace(config, dtype=dtype, quantization=quantize)
    if adapter:
        name_map = families.FAMILIES[raw["model_type"]].names
        rank, scale, targets = _adapter(adapter)
        paths = lora.adapted_maps(config, name_map, targets)
        if adapter.startswith(LORA):
            lora.check_rank(config, paths, rank)
        config = replace(config, adapters=tuple(Adapter(path, rank, scale) for path in paths))
    return Sized(model, base, config)


def weight_bytes(names: Sequence[str], dtype: str, quantize: Sequence[str | None]) -> int:
    """Returns the bytes of the models' parameters, of which those of a base count once.

    Args:
      dtype: auto counts as bfloat16.
      quantize: of each model.
    """
    dtype = "bfloat16" if dtype == "auto" else dtype
    sized = [read_size(name, dtype, kind) for name, kind in zip(names, quantize, strict=True)]
    bases = {one.base_key: one.config for one in sized}.values()
    shapes = (leaf for config in bases for leaf in jax.tree.leaves(models.param_shapes(config)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)


def _settings(base: str) -> tuple[dict, Path]:
    if base in SIZES and not hub.is_folder(base):
        return dict(SIZES[base]), Path(base)
    if "/" not in base and not hub.is_folder(base):
        raise ValueError(
            f"{shown(base, 200)}: expected a folder, a hub id org/name or one of {', '.join(SIZES)}"
        )
    folder = hub.resolve(base, CONFIGS)
    return families.read_config(folder), folder


def _adapter(name: str) -> tuple[int, float, lora.Targets]:
    """Returns rank, scale and names of the linear maps."""
    if name.startswith(LORA):
        rank = name.removeprefix(LORA)
        if not (rank.isascii() and rank.isdigit() and len(rank) < 10 and int(rank)):
            raise ValueError(f"+{shown(name, 200)}: expected +lora:RANK with a rank of at least 1")
        return int(rank), 1.0, "all-linear"
    folder = hub.resolve(name, CONFIGS)
    settings = adapter_settings.read_settings(folder)
    if "r" not in settings or not settings.get("target_modules"):
        path = shown(folder / adapter_settings.FILE, 200)
        raise ValueError(f"{path}: expected a PEFT adapter with r and target_modules")
    rank = settings["r"]
    return rank, settings.get("lora_alpha", rank) / rank, settings["target_modules"]
