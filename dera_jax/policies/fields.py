"""What `config.json` of each family may say: what is obeyed, what is refused, and what changes nothing.

A name that a family does not know is read by neither transformers nor this library. Where it means
something in another family, a line on stderr says so.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from dera_jax.common.notes import note
from dera_jax.common.shown import shown


@dataclass(frozen=True)
class Fields:
    """The settings of one family."""

    obeyed: frozenset[str]
    """What changes the model, or what is done with it, and does so here."""
    inert: frozenset[str]
    """What changes nothing once a model is trained: its training, its start, how it is run."""
    refused: dict[str, tuple] = field(default_factory=dict)
    """What would change the model, with the values that are supported."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OFF = (None, False)
ALL = _names("vocab_size tie_word_embeddings eos_token_id")
TURNED = _names("rope_parameters rope_scaling rope_theta")
DECODER = ALL | _names(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act max_position_embeddings"
)
GROUPED = DECODER | TURNED | _names("num_key_value_heads head_dim rms_norm_eps")
WINDOWS = _names("sliding_window layer_types")
CAPPED = _names("hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping")
GEMMA2 = GROUPED - {"hidden_act"} | {"attention_bias"} | WINDOWS | CAPPED
T5 = ALL | _names(
    "d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets layer_norm_epsilon "
    "relative_attention_max_distance feed_forward_proj dense_act_fn is_gated_act scale_decoder_outputs "
    "pad_token_id decoder_start_token_id hidden_size num_hidden_layers num_attention_heads head_dim"
)
INERT = _names(
    "model_type transformers_version architectures dtype torch_dtype output_hidden_states return_dict "
    "chunk_size_feed_forward id2label label2id num_labels problem_type bos_token_id use_cache "
    "initializer_range output_attentions"
)
PLAIN = INERT | _names("pad_token_id attention_dropout")
POOLED = _names(
    "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"
)
# What transformers reads of the configuration of any family.
REFUSED = {"per_layer_config": (None, {}), "is_causal": (None, True), "transformers_weights": (None,)}
ONE_STACK = REFUSED | {"is_encoder_decoder": OFF}
WHOLE = ONE_STACK | {"partial_rotary_factor": (None, 1)}
# An encoder alone, which a reward model may be, says that it is no encoder-decoder; a language model lacks tensors.
TWO_STACKS = REFUSED | {"is_encoder_decoder": (None, False, True), "tie_encoder_decoder": OFF}
CAUSAL = WHOLE | {"use_bidirectional_attention": OFF}
CONSTANT = ONE_STACK | {"scale_attn_by_inverse_layer_idx": OFF, "add_cross_attention": OFF}
FIELDS = {
    "llama": Fields(GROUPED | {"attention_bias", "mlp_bias"}, PLAIN | {"pretraining_tp"}, WHOLE),
    "mistral": Fields(GROUPED | {"sliding_window"}, PLAIN, WHOLE),
    "qwen2": Fields(GROUPED | WINDOWS | {"use_sliding_window", "max_window_layers"}, PLAIN, WHOLE),
    "qwen3": Fields(
        GROUPED | WINDOWS | {"attention_bias", "use_sliding_window", "max_window_layers"}, PLAIN, WHOLE
    ),
    "olmo2": Fields(GROUPED | {"attention_bias"}, PLAIN, WHOLE),
    "gemma": Fields(GROUPED | {"attention_bias"}, PLAIN | {"hidden_activation"}, CAUSAL),
    "gemma2": Fields(GEMMA2, PLAIN | {"hidden_act"}, CAUSAL),
    "gemma3_text": Fields(
        GEMMA2 - {"attn_logit_softcapping"} | {"rope_local_base_freq", "sliding_window_pattern"},
        PLAIN | {"hidden_act"},
        # A field of the class that its attention does not read.
        CAUSAL | {"attn_logit_softcapping": (None,)},
    ),
    "gpt2": Fields(
        ALL
        | _names("n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon")
        | _names(
            "hidden_size max_position_embeddings num_hidden_layers num_attention_heads scale_attn_weights"
        ),
        INERT | POOLED | _names("pad_token_id resid_pdrop embd_pdrop attn_pdrop reorder_and_upcast_attn"),
        CONSTANT,
    ),
    "gpt_neox": Fields(
        DECODER
        | _names("rope_parameters rope_scaling rotary_pct rotary_emb_base layer_norm_eps")
        | _names("use_parallel_residual attention_bias head_dim"),
        PLAIN | _names("hidden_dropout classifier_dropout is_decoder"),
        ONE_STACK,
    ),
    "t5": Fields(
        T5,
        INERT | _names("dropout_rate classifier_dropout initializer_factor is_decoder n_positions"),
        TWO_STACKS,
    ),
    "mt5": Fields(
        T5 - {"scale_decoder_outputs"},
        INERT | _names("dropout_rate classifier_dropout initializer_factor is_decoder n_positions"),
        TWO_STACKS,
    ),
}
ELSEWHERE = _names(
    "alibi attention_chunk_size attention_multiplier clip_qkv embedding_multiplier logit_scale logits_scaling "
    "no_rope_layers num_experts num_local_experts parallel_attn qk_layernorm residual_multiplier use_qk_norm "
    "mlp_bias"
)
"""Settings that change models of other architectures, or of several."""
CHANGING = frozenset().union(ELSEWHERE, *(one.obeyed | one.refused.keys() for one in FIELDS.values()))


def check_fields(file: Path, raw: dict) -> None:
    """Raises ValueError where a configuration asks for what is not supported; names what no model reads."""
    kind, where = raw["model_type"], shown(file, 200)
    own = FIELDS[kind]
    for name, supported in own.refused.items():
        if raw.get(name, supported[0]) not in supported:
            expected, found = supported[-1], shown(raw[name], 100)
            raise ValueError(f"{where}: {name}: expected {expected}, found {found}, which is not supported")
    _check_no_window(where, raw)
    known = own.obeyed | own.inert | own.refused.keys()
    if unread := sorted(name for name in CHANGING - known if raw.get(name)):
        told = ", ".join(f"{name} {shown(raw[name], 40)}" for name in unread)
        note(f"{where}: {told}: nothing that a model of type {kind} reads, here as in transformers")


def _check_no_window(where: str, raw: dict) -> None:
    """Raises ValueError where a model of a family without windows has one that is narrower than its context.

    In transformers such a model reads all of a text, but a window of it where it generates, as its caches know
    no families.
    """
    kind, window = raw["model_type"], raw.get("sliding_window")
    context = raw.get("max_position_embeddings") or raw.get("n_positions") or math.inf
    if "sliding_window" not in FIELDS[kind].obeyed and window and window < context:
        raise ValueError(
            f"{where}: sliding_window: expected null, or the context ({context}) or more, as a model of type {kind} "
            f"has no windows; found {window}, which is not supported"
        )


def own_fields(raw: dict) -> dict:
    """Returns a configuration without what its family does not read but others do."""
    own = FIELDS[raw["model_type"]]
    return {name: value for name, value in raw.items() if name not in CHANGING - own.obeyed}
