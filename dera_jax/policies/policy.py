"""A policy: a language model that is ready to decode."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from transformers import PreTrainedTokenizerBase

from dera_jax import models
from dera_jax.common.files import ASSETS
from dera_jax.policies import settings, tensors

TOY = ASSETS / "toy"
"""The shipped pair."""
DTYPES = ("auto", *tensors.DTYPES.values())


@dataclass(frozen=True)
class Policy:
    """One language model."""

    name: str
    """As the user wrote it."""
    folder: Path
    """Of the base, where there is an adapter."""
    config: models.ModelConfig
    params: dict
    """Nested dict of arrays, as `models.param_shapes(config)`; policies on one base share its arrays."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    """Ids that end a completion, of generation_config, config and tokenizer together."""
    fingerprint: str
    """Hash of configuration and weights."""
    beta: float | None = None
    """KL strength it was aligned with, where its manifest tells."""
    template: str | None = None
    """Chat template that it reads `messages` through; empty: their contents as raw text. None: the aligned
    model's, or else the reference's, as all models do."""
    instruction: str | None = None
    """What it alone is told beside the task, see `data.instructions`."""
    reads_contrast: bool = False
    """Whether it reads a prompt's `contrast` in place of the prompt, where there is one: as references do."""
    adapter: Path | None = None
    """Folder of the adapter that it was loaded with."""
    tokenizer_fingerprint: str | None = None
    """Hash of the files of tokenizer and chat template."""
    stored_dtype: str | None = None
    """Type of the base's tensors in its files; None where it is from no files."""
    value_of: str | None = None
    """Of a value head, which gives values in the place of logits: fingerprint of the language model that it
    stands on; None of a language model."""


def with_params(policy: Policy, params: dict) -> Policy:
    """Returns `policy` with other parameters; nothing is compiled again."""
    return replace(policy, params=params)


def held_bytes(policies: Sequence[Policy]) -> int:
    """Returns the bytes that the parameters of `policies` take, shared ones counted once."""
    arrays = {id(a): a for policy in policies for a in jax.tree.leaves(policy.params)}
    return sum(a.nbytes for a in arrays.values())


def find_eos_ids(folder: Path, raw: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    ids: set[int] = set()
    for value in (
        settings.read_generation(folder).get("eos_token_id"),
        raw.get("eos_token_id"),
        tokenizer.eos_token_id,
    ):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))
