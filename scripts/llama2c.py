"""Models of karpathy/llama2.c as Hugging Face folders; nothing is unpickled.

MODEL.bin (version 0) is seven int32 (width, width of the MLP, layers, heads, key-value heads, words, context) and
float32 weights: the embedding; then, each for all layers, a block of every kind of weight; the last norm; tables of
the rotary positions. TOKENIZER.bin is an int32 and, for each word, its score, its length in bytes, its bytes.
"""

import json
import struct
from itertools import islice

import numpy as np
from safetensors.numpy import save

BLOCKS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj",
)  # fmt: skip
"""In the order of the file."""
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = 256
"""Words behind the special ones, one for each byte."""


def convert(model: bytes, vocabulary: bytes) -> dict[str, bytes]:
    """Returns the files of a Hugging Face folder by their names, of a model whose head is its embedding."""
    sizes = struct.unpack("<7i", model[:28])
    words = read_words(vocabulary, sizes[5])
    files = {
        "config.json": config(*sizes),
        "tokenizer_config.json": tokenizer_config(sizes[6]),
        "tokenizer.json": tokenizer(words),
    }
    weights = save(read_weights(model), metadata={"format": "pt"})
    return {"model.safetensors": weights} | {name: _encode(value) for name, value in files.items()}


def _encode(value: dict) -> bytes:
    # The library that writes tokenizer.json ends it without a line break, the others with one.
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n" * ("model" not in value)).encode()


def read_weights(model: bytes) -> dict[str, np.ndarray]:
    """Returns the tensors under their names at Hugging Face."""
    width, inner, layers, heads, kv_heads, words, _ = struct.unpack("<7i", model[:28])
    left = iter(np.frombuffer(model, "<f4", offset=28))
    size = width // heads
    shapes = {
        "input_layernorm": (width,), "post_attention_layernorm": (width,), "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_heads * size, width), "self_attn.v_proj": (kv_heads * size, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.down_proj": (width, inner),
        "mlp.up_proj": (inner, width),
    }  # fmt: skip

    def take(*shape: int) -> np.ndarray:
        return np.fromiter(islice(left, int(np.prod(shape))), "<f4").reshape(shape)

    found = {"model.embed_tokens.weight": take(words, width)}
    for block in BLOCKS:
        for layer in range(layers):
            weights = take(*shapes[block])
            if block in ("self_attn.q_proj", "self_attn.k_proj"):
                weights = halves(weights, size)
            found[f"model.layers.{layer}.{block}.weight"] = weights
    return found | {"model.norm.weight": take(width)}


def halves(weights: np.ndarray, size: int) -> np.ndarray:
    """Returns the rows of each head with the two of every rotary pair half a head apart, as Hugging Face has them.

    Here they are neighbours: rows 0 1 2 3 of a head of 4 become 0 2 1 3.
    """
    return weights.reshape(-1, size // 2, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def read_words(vocabulary: bytes, count: int) -> list[str]:
    """Returns the words in sentencepiece's spelling, with ▁ for a space."""
    words, at = [], 4
    for _ in range(count):
        _, length = struct.unpack_from("<fi", vocabulary, at)
        words.append(vocabulary[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
        at += 8 + length
    return [*SPECIAL, *words[len(SPECIAL) :]]


def tokenizer(words: list[str]) -> dict:
    """Returns tokenizer.json: byte pairs merged in the order of the words, the rest spelled in bytes."""
    ids = {word: number for number, word in enumerate(words)}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for number, word in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids, "merges": [pair for word in words[len(SPECIAL) + BYTES :] for pair in merges(word, ids)]},
    }  # fmt: skip


def merges(word: str, ids: dict[str, int]) -> list[list[str]]:
    """Returns the pairs of words that make one, the earliest words first."""
    pairs = ([word[:n], word[n:]] for n in range(1, len(word)))
    return sorted(
        (p for p in pairs if all(part in ids for part in p)), key=lambda p: [ids[part] for part in p]
    )


def config(width: int, inner: int, layers: int, heads: int, kv_heads: int, words: int, context: int) -> dict:
    """Returns config.json. BOS also ends a story."""
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "dtype": "float32", "eos_token_id": 1, "head_dim": width // heads,
        "hidden_act": "silu", "hidden_size": width, "initializer_range": 0.02, "intermediate_size": inner,
        "max_position_embeddings": context, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
        "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": True,
        "transformers_version": "5.23.0", "use_cache": True, "vocab_size": words,
    }  # fmt: skip


def tokenizer_config(context: int) -> dict:
    """Returns tokenizer_config.json."""
    special = {"bos_token": "<s>", "eos_token": "<s>", "model_max_length": context, "pad_token": "<unk>"}
    return (
        {"backend": "tokenizers"} | special | {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>"}
    )
