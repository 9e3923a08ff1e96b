"""What `config.json` and `generation_config.json` of a model folder may hold.

Settings of all families together: what one of them does not know, it does not read.
"""

import warnings
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from dera_jax.common.json_files import read_object
from dera_jax.common.notes import Note, note
from dera_jax.common.shown import shown
from dera_jax.policies import tensors

Size = Annotated[int, Meta(ge=1, lt=2**31)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Token = Annotated[int, Meta(ge=-1, lt=2**31)]
"""An id; -1 stands for none."""
Tokens = Token | list[Token] | None
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class RopeSettings(TypedDict, total=False):
    """One kind of rotary positions, under its names of today and of before."""

    rope_type: str | None
    type: str | None
    rope_theta: float | None
    factor: float | None
    low_freq_factor: Positive | None
    high_freq_factor: Positive | None
    original_max_position_embeddings: Size | None
    beta_fast: Positive | None
    beta_slow: Positive | None
    attention_factor: Positive | None
    mscale: float | None
    mscale_all_dim: float | None
    partial_rotary_factor: Share | None
    truncate: bool | None


class RopesSettings(RopeSettings, total=False):
    """The one kind, or one for each kind of layer."""

    full_attention: RopeSettings
    sliding_attention: RopeSettings


class Kind(TypedDict, total=False):
    """What tells the family."""

    model_type: str | None
    quantization_config: dict | None


class ModelSettings(TypedDict, total=False):
    """config.json."""

    architectures: list[str] | None
    dtype: str | None
    torch_dtype: str | None
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None
    head_dim: Size | None
    max_position_embeddings: Size
    n_embd: Size
    n_inner: Size | None
    n_layer: Layers
    n_head: Size
    n_positions: Size
    d_model: Size
    d_ff: Size
    d_kv: Size
    num_layers: Layers
    num_decoder_layers: Layers | None
    num_heads: Size
    relative_attention_num_buckets: Size
    relative_attention_max_distance: Size
    rms_norm_eps: Share
    layer_norm_eps: Share
    layer_norm_epsilon: Share
    hidden_act: str | None
    hidden_activation: str | None
    activation_function: str | None
    feed_forward_proj: str
    attention_bias: bool
    mlp_bias: bool
    use_parallel_residual: bool
    scale_attn_weights: bool
    scale_decoder_outputs: bool
    tie_word_embeddings: bool | None
    use_bidirectional_attention: bool | None
    use_sliding_window: bool | None
    sliding_window: Count | None
    sliding_window_pattern: Size | None
    max_window_layers: Count | None
    layer_types: list[str] | None
    query_pre_attn_scalar: Positive
    attn_logit_softcapping: Positive | None
    final_logit_softcapping: Positive | None
    rope_theta: float | None
    rope_local_base_freq: float | None
    rotary_emb_base: float | None
    rotary_pct: Share | None
    partial_rotary_factor: Share | None
    rope_scaling: RopesSettings | None
    rope_parameters: RopesSettings | None
    bos_token_id: Tokens
    eos_token_id: Tokens
    pad_token_id: Token | None
    decoder_start_token_id: Token | None
    # The library makes a name for each.
    num_labels: Annotated[int, Meta(ge=0, le=100_000)] | None
    id2label: dict[str, str | int | float] | None
    label2id: dict[str, str | int | float] | None


class GenerationSettings(TypedDict, total=False):
    """generation_config.json."""

    eos_token_id: Tokens


class Manifest(TypedDict, total=False):
    """manifest.json of a model that was trained here."""

    beta: Annotated[float, Meta(ge=0)] | None


NOT_APPLIED = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": 1,
    "min_length": 0, "min_new_tokens": 0, "num_beams": 1, "penalty_alpha": 0, "guidance_scale": 1,
    "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": [], "sequence_bias": {},
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "watermarking_config": None, "dola_layers": None, "stop_strings": [],
}  # fmt: skip
"""What of generation_config.json would change which tokens transformers draws, beside the settings that have an
option here, with the values that do nothing."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
"""What says how many blocks a model has."""


def check_layers(folder: Path, raw: dict) -> None:
    """Raises ValueError where a configuration has more layers than the files, if there are any, hold.

    Each layer of a model is built before its tensors are looked for.
    """
    if not tensors.has_weights(folder):
        return
    held = 1 + max(map(_layer, tensors.list_tensors(folder)))
    for name in LAYERS:
        if (raw.get(name) or 0) > held:
            raise ValueError(
                f"{shown(folder / 'config.json', 200)}: {name}: expected at most {held}, which the safetensors "
                f"files hold, found {raw[name]}"
            )


def _layer(tensor: str) -> int:
    """Returns the number of a tensor's layer, the first in its name; 0 for those of no layer."""
    return next((int(part[:9]) for part in tensor.split(".") if part.isascii() and part.isdigit()), 0)


def read_generation(folder: Path) -> dict:
    """Returns what generation_config.json says; nothing where there is none.

    What it asks of drawing is not done, and what has no option here either is named on stderr.

    Raises:
      ValueError: it is broken.
    """
    path = folder / "generation_config.json"
    found = read_object(path, GenerationSettings)
    asked = [name for name, nothing in NOT_APPLIED.items() if found.get(name) not in (None, False, nothing)]
    if asked:
        told = ", ".join(f"{name} {found[name]}" for name in asked)
        note(f"{shown(path, 200)}: not applied to what is drawn: {shown(told, 200)}")
    return found


def read_beta(folder: Path) -> float | None:
    """Returns the KL strength that manifest.json tells; where it is no object, it is no manifest of ours.

    Raises:
      ValueError: it tells something else than a number.
    """
    path = folder / "manifest.json"
    try:
        read_object(path)
    except ValueError as error:
        warnings.warn(f"passed over, so β is not known from it: {error}", Note, stacklevel=2)
        return None
    return read_object(path, Manifest).get("beta")
