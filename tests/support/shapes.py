"""Settings of a tiny model of every family, as config.json has them."""

VOCAB = 512
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCAB, "n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 8,
    "n_positions": 256, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500.0
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
NEOX = {"model_type": "gpt_neox", "num_key_value_heads": None}
GEMMA2 = {
    "model_type": "gemma2", "num_hidden_layers": 3, "head_dim": 12, "query_pre_attn_scalar": 7,
    "sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 12, "query_pre_attn_scalar": 7,
    "sliding_window": 16, "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_theta": 500.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
    },
}  # fmt: skip
SHAPES = {
    "llama": {},
    "llama, as many key-value heads": {"num_key_value_heads": 8},
    "llama, one key-value head": {"num_key_value_heads": 1},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, wide heads": {"head_dim": 24},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, other settings": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2},
    "llama, theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama, llama3 rope": {"rope_parameters": LLAMA3},
    "llama, linear rope": {"rope_parameters": LINEAR},
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 12},
    "mistral, no window": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, yarn rope": {"model_type": "qwen2", "rope_parameters": YARN},
    "qwen2, windows": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "attention_bias": True},
    "qwen3, tied": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "olmo2, tied": {"model_type": "olmo2", "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 12, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gemma2": GEMMA2,
    "gemma2, tied": GEMMA2 | {"tie_word_embeddings": True},
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gpt2, untied": GPT2 | {"tie_word_embeddings": False, "scale_attn_weights": False},
    "gpt_neox": NEOX,
    "gpt_neox, one after the other": NEOX
    | {"use_parallel_residual": False, "tie_word_embeddings": True, "rotary_pct": 0.5, "attention_bias": False},
}  # fmt: skip
"""Settings that differ from `BASE`, a Llama."""
FAMILIES = [name for name in SHAPES if "," not in name or "llama3" in name or "yarn" in name]
