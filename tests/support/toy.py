"""Random policies small enough to list everything they can say."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import models
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.policies.policy import Policy
from dera_jax.policies.tokenizers import load_tokenizer

EOS = 3


def tiny_policy(tokenizer_folder: Path, seed: int, vocab: int = 4, scale: float = 2.5) -> Policy:
    """Returns a random two-layer policy; `scale` makes its distributions uneven."""
    config = DecoderConfig(
        vocab_size=vocab, width=16, mlp_width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
        max_positions=64,
    )  # fmt: skip
    params = models.init_params(config, seed)
    params["head"]["kernel"] = scale * params["head"]["kernel"]
    tokenizer = load_tokenizer(tokenizer_folder)
    return Policy(f"tiny-{seed}", tokenizer_folder, config, params, tokenizer, (EOS,), f"tiny-{seed}")


def all_completions(vocab: int, longest: int) -> list[tuple[int, ...]]:
    """Returns every completion: those that end with EOS, and those cut off at `longest` tokens."""
    words = [word for word in range(vocab) if word != EOS]
    open_ended: list[tuple[int, ...]] = [()]
    found = []
    for _ in range(longest):
        found += [(*start, EOS) for start in open_ended]
        open_ended = [(*start, word) for start in open_ended for word in words]
    return found + open_ended


def exact_logprobs(
    policy: Policy, prompt: tuple[int, ...], completions: list[tuple[int, ...]]
) -> list[np.ndarray]:
    """Returns log π(v | x, y₍<t₎) for every completion, [tokens, vocab], in float64."""
    longest = max(map(len, completions))
    tokens = np.zeros((len(completions), len(prompt) + longest), np.int32)
    for row, completion in enumerate(completions):
        tokens[row, : len(prompt) + len(completion)] = (*prompt, *completion)
    forward = jax.jit(lambda p, t: models.bind(policy.config, p).forward(t, jnp.ones(t.shape, bool)))
    logits = np.asarray(forward(policy.params, tokens), np.float64)[:, len(prompt) - 1 :]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [logprobs[row, : len(completion)] for row, completion in enumerate(completions)]
