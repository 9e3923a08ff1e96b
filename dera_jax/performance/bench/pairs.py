"""The pairs that are measured, and how they are told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dera_jax.common.notes import note

SHAPES = {
    # 15.2 M parameters with the embedding as the head; a head of its own would make them 24.4 M.
    "15m": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}
"""Random models: fields of their `config.json`."""
OPENINGS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, a boy named Tom went to the park with his mom.",
    "The cat and the dog were best friends.",
    "Ben found a big red ball under the tree.",
    "It was a cold day and the snow was falling.",
    "Mia wanted to bake a cake for her grandma.",
    "There was a bird who could not sing.",
    "The old man had a small boat by the sea.",
)
"""Prompts of the sweep where the toy's are not shipped."""


def load_pairs(names: tuple[str | None, str | None], shape: str, folder: Path) -> Iterator[tuple]:
    """Yields the given pair, or the toy, and then the random one."""
    from dera_jax.performance.bench.sides import random_policies
    from dera_jax.policies.load import load_policies
    from dera_jax.policies.value_heads import check_language_models

    pair = load_policies(*names)
    check_language_models(pair)
    yield pair
    if shape != "none":
        policies = random_policies(folder, SHAPES[shape])
        name = f"random Llama of {_num_parameters(policies[0]) / 1e6:.1f} M parameters"
        yield tuple(replace(policy, name=name) for policy in policies)


def torch_pair(policies, folder: Path, device: str):
    """Returns the same two models on torch, through files."""
    from transformers.utils import logging

    from dera_jax.performance.bench.torch_decoding import TorchPair
    from dera_jax.policies.save import save_policy

    logging.disable_progress_bar()
    folders = [folder / name for name in ("reference", "aligned")]
    for policy, place in zip(policies, folders, strict=True):
        save_policy(policy, place)
    return TorchPair(*folders, device=torch_device(device))


def torch_device(device: str) -> str:
    """Returns the device of torch beside JAX's, which `device` tells in words; notes it where they differ."""
    import jax
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    if jax.default_backend() != "cpu" and not on_gpu:
        note(f"torch runs on the CPU, JAX on {device}: their ratio compares machines")
    return "cuda" if on_gpu else "cpu"


def sweep_prompts(spec: str | None, policies, new_tokens: int, count: int | None = None):
    from dera_jax.common.files import ASSETS
    from dera_jax.data.encoding import encode_prompts
    from dera_jax.data.prompts import as_prompts, load_prompts
    from dera_jax.data.records import SHIPPED
    from dera_jax.performance.bench import decoding

    if spec is None and (ASSETS / SHIPPED["toy"]).is_file():
        spec = "toy"
    prompts = load_prompts(spec, count or decoding.SWEEP_PROMPTS) if spec else as_prompts(OPENINGS)
    return encode_prompts(policies, prompts, new_tokens)


def _num_parameters(policy) -> int:
    """Returns how many numbers a policy's parameters are; a shared embedding counts once."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(policy.params))


def describe(policies) -> dict:
    reference, aligned = policies
    return {
        "reference": reference.name,
        "aligned": aligned.name,
        "parameters": _num_parameters(aligned),
        "vocab_size": aligned.config.vocab_size,
        "dtype": aligned.config.dtype,
        "fingerprints": [policy.fingerprint for policy in policies],
    }


def title(model: dict) -> str:
    return (
        f"{model['reference']} and {model['aligned']}: {model['parameters']:,} parameters each, "
        f"{model['vocab_size']} words, {model['dtype']}"
    )
