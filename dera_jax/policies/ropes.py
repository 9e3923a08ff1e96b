"""Rotary positions as configurations say them."""

import math
from dataclasses import replace

import numpy as np

from dera_jax.common.checks import check_choice
from dera_jax.models.binding import ModelConfig
from dera_jax.models.rope import KINDS, Rope


def read_rope(parameters: dict, partial: bool = False) -> Rope:
    """Returns what transformers calls `rope_parameters`.

    Args:
      partial: whether models of the family turn a share of their dimensions.

    Raises:
      ValueError: a kind that is not supported, or a share that transformers does not read.
    """
    if not partial and parameters.get("partial_rotary_factor") not in (None, 1):
        found = parameters["partial_rotary_factor"]
        raise ValueError(
            f"partial_rotary_factor: expected 1, found {found}: other models of this type turn all dimensions"
        )
    kind = parameters.get("rope_type", "default")
    check_choice("rope_type", kind, KINDS)
    if kind != "default" and parameters.get("factor") is None:
        raise ValueError(f"rope_parameters: expected a factor for rope_type {kind!r}, found none")
    fields = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "partial_rotary_factor": "fraction",
    }
    rope = Rope(
        float(parameters["rope_theta"]),
        "linear" if kind == "linear" else "default",
        **{
            ours: float(parameters[name]) for name, ours in fields.items() if parameters.get(name) is not None
        },
    )
    if kind == "default":
        return rope
    if kind == "linear":
        return replace(rope, original_max_positions=parameters.get("original_max_position_embeddings") or 0)
    rope = replace(rope, kind=kind, original_max_positions=parameters["original_max_position_embeddings"])
    if kind == "yarn":
        return replace(
            rope, truncate=parameters.get("truncate", True), attention_factor=_yarn_factor(parameters)
        )
    return rope


def longest_context(positions: int, rope: Rope) -> int:
    """Returns the longest context in tokens, also where only the scaling says that it was made longer.

    Model cards add `rope_scaling` and leave `max_position_embeddings`; vLLM reads the same of both.

    Args:
      positions: `max_position_embeddings`.
    """
    if rope.kind not in ("linear", "yarn"):
        return positions
    return max(positions, int(rope.factor * (rope.original_max_positions or positions)))


def _yarn_factor(parameters: dict) -> float:
    """Returns how much longer queries and keys become where the file does not say: 0.1 ln(factor) + 1 each."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def longer(multiple: float) -> float:
        return 0.1 * multiple * math.log(parameters["factor"]) + 1.0 if parameters["factor"] > 1 else 1.0

    one, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return longer(one) / longer(all_dims) if one and all_dims else longer(1.0)


def check_ropes(config: ModelConfig) -> None:
    """Raises ValueError where rotary positions have no frequencies."""
    for rope in (getattr(config, "rope", None), getattr(config, "local_rope", None)):
        with np.errstate(all="ignore"):
            if rope and not np.isfinite(rope.frequencies(config.head_dim)).all():
                raise ValueError(f"rope: expected finite frequencies, found others with {rope}")
