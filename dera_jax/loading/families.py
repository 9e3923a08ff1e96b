"""The supported architectures: how each names its settings and its tensors.

A family is data: a mapping from its `config.json` and a map from our parameter paths to the names
in its files, `{}` standing for the layer's number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dera_jax.loading.files import read_object
from dera_jax.models import ModelConfig
from dera_jax.models.layers import Rope


@dataclass(frozen=True)
class Family:
    """One `model_type`."""

    config: Callable[[Any, str], ModelConfig]
    """A transformers config and a dtype to ours."""
    names: dict[str, str]
    """Our parameter path to the file's tensor name."""


def _llama(hf: Any, dtype: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=hf.vocab_size,
        width=hf.hidden_size,
        mlp_width=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        max_positions=hf.max_position_embeddings,
        norm_epsilon=hf.rms_norm_eps,
        activation=hf.hidden_act,
        rope=_rope(hf.rope_parameters),
        tie_embeddings=hf.tie_word_embeddings,
        dtype=dtype,
    )


LLAMA_NAMES = {
    "embed.embedding": "model.embed_tokens.weight",
    "blocks.{}.attention_norm.scale": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.attention.query.kernel": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attention.key.kernel": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attention.value.kernel": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attention.out.kernel": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.feed_forward_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.feed_forward.gate.kernel": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.feed_forward.up.kernel": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.feed_forward.down.kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm.scale": "model.norm.weight",
    "head.kernel": "lm_head.weight",
}

FAMILIES = {"llama": Family(_llama, LLAMA_NAMES)}


def _rope(parameters: dict) -> Rope:
    kind = parameters.get("rope_type", "default")
    theta = float(parameters["rope_theta"])
    if kind == "default":
        return Rope(theta)
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_max_positions=parameters["original_max_position_embeddings"],
        )
    raise ValueError(f"rope_type {kind!r} is not supported; expected default or llama3")


def read_config(folder: Path) -> dict:
    """Returns `config.json` of a model folder as it stands there.

    Raises:
      ValueError: missing, broken, or of a kind that is not supported.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: expected a Hugging Face model folder, found no config.json")
    raw = read_object(path)
    kind = raw.get("model_type")
    if "auto_map" in raw and kind not in FAMILIES:
        raise ValueError(f"{path}: the model brings its own code (auto_map), which is never run")
    if kind not in FAMILIES:
        raise ValueError(f"{path}: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    return raw


def model_config(folder: Path, raw: dict, dtype: str) -> ModelConfig:
    """Returns our configuration of a folder's model.

    Raises:
      ValueError: a setting that is missing or not supported, with the file.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig  # here, because it takes a second to import

    try:
        hf = AutoConfig.for_model(**raw)
        for bias in ("attention_bias", "mlp_bias"):
            if getattr(hf, bias, False):
                raise ValueError(f"{bias} is not supported; expected false, found true")
        return FAMILIES[raw["model_type"]].config(hf, dtype)
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from error


def tensor_names(model_type: str, paths: list[str]) -> dict[str, str]:
    """Returns the file's tensor name of each of our parameter paths, such as `blocks.3.norm.scale`."""
    names = FAMILIES[model_type].names
    result = {}
    for path in paths:
        parts = path.split(".")
        number = next((p for p in parts if p.isdigit()), "")
        pattern = ".".join("{}" if p.isdigit() else p for p in parts)
        result[path] = names[pattern].format(number)
    return result
