"""The supported architectures: how each names its settings.

A family is data: what its `config.json` says in our words, and the names of its tensors (`names.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dera_jax.common.checks import check_choice
from dera_jax.common.json_files import read_object
from dera_jax.common.shown import shown
from dera_jax.models.binding import ModelConfig
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.t5_config import T5Config
from dera_jax.policies import adapter_settings, fields, names, settings, tensors, ties
from dera_jax.policies.ropes import check_ropes, longest_context, read_rope


@dataclass(frozen=True)
class Family:
    """One `model_type`."""

    config: Callable[[Any], ModelConfig]
    """A transformers config to ours."""
    names: names.NameMap
    head_in_file: bool = False
    """Whether the head is the embedding where files hold no head, whatever the settings say."""


def _llama(hf: Any, **more) -> DecoderConfig:
    """Returns what most families share; `more` is where one differs."""
    bias = getattr(hf, "attention_bias", False)
    if "rope" not in more:
        rope = read_rope(hf.rope_parameters)
        more = {"rope": rope, "max_positions": longest_context(hf.max_position_embeddings, rope)} | more
    return DecoderConfig(
        **{
            "vocab_size": hf.vocab_size,
            "width": hf.hidden_size,
            "mlp_width": hf.intermediate_size,
            "num_layers": hf.num_hidden_layers,
            "num_heads": hf.num_attention_heads,
            "num_kv_heads": hf.num_key_value_heads,
            "head_dim": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
            "max_positions": hf.max_position_embeddings,
            "norm_epsilon": hf.rms_norm_eps,
            "activation": getattr(hf, "hidden_activation", None) or hf.hidden_act,
            "qkv_bias": bias,
            "out_bias": bias,
            "mlp_bias": getattr(hf, "mlp_bias", False),
            "windows": _windows(hf),
            "tie_embeddings": hf.tie_word_embeddings,
        }
        | more
    )


def _mistral(hf: Any) -> DecoderConfig:
    window = hf.sliding_window or 0
    return _llama(hf, windows=(window,) * hf.num_hidden_layers if window else ())


def _qwen2(hf: Any) -> DecoderConfig:
    return _llama(hf, qkv_bias=True, out_bias=False)


def _qwen3(hf: Any) -> DecoderConfig:
    return _llama(hf, qk_norm="head")


def _olmo2(hf: Any) -> DecoderConfig:
    return _llama(hf, qk_norm="width", pre_norm=False, post_norm=True)


def _gemma(hf: Any, **more) -> DecoderConfig:
    own = {"norm": "rms_unit_offset", "embedding_scale": hf.hidden_size**0.5}
    # Old files say gelu and were trained with its approximation.
    if getattr(hf, "hidden_act", None) == "gelu":
        own["activation"] = "gelu_pytorch_tanh"
    return _llama(hf, **own | more)


def _gemma2(hf: Any, **more) -> DecoderConfig:
    return _gemma(
        hf,
        post_norm=True,
        query_scale=hf.query_pre_attn_scalar**-0.5,
        attention_softcap=hf.attn_logit_softcapping or 0.0,
        logit_softcap=hf.final_logit_softcapping or 0.0,
        **more,
    )


def _gemma3(hf: Any) -> DecoderConfig:
    ropes = hf.rope_parameters
    return _gemma2(
        hf,
        qk_norm="head",
        rope=read_rope(ropes["full_attention"]),
        local_rope=read_rope(ropes["sliding_attention"]),
    )


def _gpt2(hf: Any) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=hf.vocab_size,
        width=hf.n_embd,
        mlp_width=hf.n_inner or 4 * hf.n_embd,
        num_layers=hf.n_layer,
        num_heads=hf.n_head,
        num_kv_heads=hf.n_head,
        head_dim=hf.n_embd // hf.n_head,
        max_positions=hf.n_positions,
        activation=hf.activation_function,
        gated=False,
        norm="layer",
        norm_epsilon=hf.layer_norm_epsilon,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        rope=None,
        query_scale=None if hf.scale_attn_weights else 1.0,
        tie_embeddings=hf.tie_word_embeddings,
    )


def _gpt_neox(hf: Any) -> DecoderConfig:
    head_dim = hf.hidden_size // hf.num_attention_heads
    if getattr(hf, "head_dim", None) not in (None, head_dim):
        raise ValueError(
            f"head_dim: expected hidden_size / num_attention_heads ({head_dim}), found {hf.head_dim}"
        )
    rope = read_rope(hf.rope_parameters, partial=True)
    return DecoderConfig(
        vocab_size=hf.vocab_size,
        width=hf.hidden_size,
        mlp_width=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_attention_heads,
        head_dim=head_dim,
        max_positions=longest_context(hf.max_position_embeddings, rope),
        activation=hf.hidden_act,
        gated=False,
        norm="layer",
        norm_epsilon=hf.layer_norm_eps,
        parallel=hf.use_parallel_residual,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        mlp_bias=True,
        rope=rope,
        tie_embeddings=hf.tie_word_embeddings,
    )


def _t5(hf: Any) -> T5Config:
    scaled = getattr(hf, "scale_decoder_outputs", False)
    start = getattr(hf, "decoder_start_token_id", None)
    return T5Config(
        vocab_size=hf.vocab_size,
        width=hf.d_model,
        mlp_width=hf.d_ff,
        num_layers=hf.num_decoder_layers,
        num_encoder_layers=hf.num_layers,
        num_heads=hf.num_heads,
        head_dim=hf.d_kv,
        buckets=hf.relative_attention_num_buckets,
        max_distance=hf.relative_attention_max_distance,
        norm_epsilon=hf.layer_norm_epsilon,
        activation=hf.dense_act_fn,
        gated=hf.is_gated_act,
        tie_embeddings=scaled,
        scale_outputs=scaled,
        start_token=hf.pad_token_id if start is None else start,
    )


FAMILIES = {
    "llama": Family(_llama, names.LLAMA),
    "mistral": Family(_mistral, names.LLAMA),
    "qwen2": Family(_qwen2, names.LLAMA),
    "qwen3": Family(_qwen3, names.LLAMA),
    "olmo2": Family(_olmo2, names.OLMO2),
    "gemma": Family(_gemma, names.LLAMA),
    "gemma2": Family(_gemma2, names.GEMMA2),
    "gemma3_text": Family(_gemma3, names.GEMMA2),
    "gpt2": Family(_gpt2, names.GPT2),
    "gpt_neox": Family(_gpt_neox, names.GPT_NEOX),
    "t5": Family(_t5, names.T5, head_in_file=True),
    "mt5": Family(_t5, names.T5, head_in_file=True),
}


def _windows(hf: Any) -> tuple[int, ...]:
    kinds = getattr(hf, "layer_types", None) or []
    for kind in kinds:
        check_choice("layer_types", kind, ("full_attention", "sliding_attention"))
    if "sliding_attention" not in kinds:
        return ()
    if hf.sliding_window is None:
        raise ValueError("sliding_window: expected a number of positions, found null")
    return tuple(hf.sliding_window if kind == "sliding_attention" else 0 for kind in kinds)


def read_config(folder: Path) -> dict:
    """Returns `config.json` of a model folder, with what it leaves to be inferred.

    Raises:
      ValueError: missing, broken, or of a kind that is not supported.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{shown(folder, 200)}: expected a Hugging Face model folder, found {_found(folder)}"
        )
    where = shown(path, 200)
    raw = read_object(path, settings.Kind)
    kind = raw.get("model_type")
    if "auto_map" in raw and kind not in FAMILIES:
        raise ValueError(f"{where}: the model brings its own code (auto_map), which is never run")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        told = f"model_type {shown(repr(kind), 100)} is not supported{_instead(raw)}; supported: {known}"
        raise ValueError(f"{where}: {told}")
    if (quantized := raw.get("quantization_config")) is not None:
        method = shown(quantized.get("quant_method", "an unknown method"), 100)
        raise ValueError(
            f"{where}: quantization_config: expected full precision, found weights quantized by {method}; "
            "take the model that they were made from, with --quantize=int8 or nf4"
        )
    raw = read_object(path, settings.ModelSettings)
    fields.check_fields(path, raw)
    if kind == "t5":
        # Old files tell it by another setting, which what we save may have to change.
        raw.setdefault("scale_decoder_outputs", raw.get("tie_word_embeddings") is not False)
    return raw


ENCODERS = (
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "albert",
    "electra",
    "deberta",
    "deberta-v2",
    "modernbert",
)
"""Kinds that read a text and write none."""


def _instead(raw: dict) -> str:
    """Returns what would work in the place of a model of an unknown kind, where that can be told."""
    if raw.get("model_type") in ENCODERS:
        return ", an encoder, which draws no text: expected a decoder, or a T5"
    within = raw.get("text_config")
    kind = within.get("model_type") if isinstance(within, dict) else None
    if not isinstance(kind, str):
        return ""
    if kind in FAMILIES:
        return f", but the language model within, a {kind}, is if it is saved by itself"
    return f", nor is the language model within, a {shown(kind, 100)}"


def _found(folder: Path) -> str:
    """Returns what lies in the place of a model, and how to write what may be meant."""
    if (folder / "adapter_config.json").is_file():
        base = adapter_settings.read_settings(folder).get("base_model_name_or_path")
        return f"a PEFT adapter; write {shown(base or 'BASE', 200)}+{shown(folder, 200)}"
    kinds = "config.json", "adapter_config.json"
    runs = sorted(p.name for p in folder.glob("*") if any((p / kind).is_file() for kind in kinds))
    if runs:
        some = shown(", ".join(runs[:6])) + ", …" * (len(runs) > 6)
        return f"folders of models ({len(runs)}: {some}); write {shown(folder / runs[0], 200)}, or another of them"
    return "no config.json"


def check_language_model(folder: Path, raw: dict) -> None:
    """Raises ValueError where a configuration says that the model is a reward model."""
    for name in raw.get("architectures") or []:
        if name.endswith("ForSequenceClassification"):
            name = shown(name, 100)
            raise ValueError(
                f"{shown(folder, 200)}: expected a language model, found a reward model ({name})"
            )


def model_config(folder: Path, raw: dict) -> ModelConfig:
    """Returns our configuration of a folder's model, in float32.

    Raises:
      ValueError: a setting that is missing or not supported, with the file.
    """
    family = FAMILIES[raw["model_type"]]
    settings.check_layers(folder, raw)
    config = _said(folder, raw)
    if not family.head_in_file:
        return replace(config, tie_embeddings=ties.is_tied(folder, family.names, config.tie_embeddings))
    if tensors.has_weights(folder):
        head = names.find(family.names.names["head.kernel"], family.names, tensors.list_tensors(folder))
        config = replace(config, tie_embeddings=head is None)
    return config


def is_untied_by_files(folder: Path, raw: dict, config: ModelConfig) -> bool:
    """Returns whether a decoder's head is its own only because the files say so."""
    own = FAMILIES[raw["model_type"]].head_in_file or not _said(folder, raw).tie_embeddings
    return not own and not config.tie_embeddings


def _said(folder: Path, raw: dict) -> ModelConfig:
    """Returns what the settings alone say.

    Raises:
      ValueError: a setting that is missing or not supported, with the file.
    """
    from transformers import AutoConfig  # here, because it takes a second to import

    family = FAMILIES[raw["model_type"]]
    try:
        config = family.config(AutoConfig.for_model(**fields.own_fields(raw)))
        check_ropes(config)
    except Exception as error:  # the library's classes check in their own ways, and fail in others
        found = shown(" ".join(str(error).split()), 300) or type(error).__name__
        raise ValueError(f"{shown(folder / 'config.json', 200)}: {found}") from None
    return config
