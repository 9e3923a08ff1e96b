"""Linear probes of a prompt: which of two kinds it is, by the hidden state of its last token.

    yes where w · h + b > 0,      w = mean h(yes) − mean h(no),      b = −w · (mean h(yes) + mean h(no)) / 2

References: Wang et al., "InferAligner", arXiv:2401.11206, which steers only where such a gate opens.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.policies.policy import Policy
from dera_jax.policies.steering import Probe
from dera_jax.scoring.steering import read_states


def prompt_states(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    rows: int = 8,
    seen: Callable[[int], object] = lambda _: None,
) -> Float[np.ndarray, "prompts layers width"]:
    """Returns the residual stream behind every block at the last token of prompts of at least two tokens.

    Args:
      rows: prompts read at a time.
      seen: is told how many were read since it was last told.

    Raises:
      ValueError: an encoder-decoder, or states that are not finite.
    """
    if not isinstance(policy.config, DecoderConfig) or policy.value_of is not None:
        raise ValueError(f"{policy.name}: expected a decoder-only language model to probe")
    found = []
    for states in read_states(policy, [(ids[:-1], ids[-1:]) for ids in prompts], rows, "last"):
        found.append(states)
        seen(len(states))
    states = np.concatenate(found)
    if not np.isfinite(states).all():
        raise ValueError(f"{policy.name}: hidden states are not finite")
    return states


def fit_probes(
    states: Float[np.ndarray, "prompts layers width"], yes: Bool[np.ndarray, " prompts"]
) -> list[Probe]:
    """Returns a probe of every layer.

    Raises:
      ValueError: prompts of one kind alone.
    """
    if yes.all() or not yes.any():
        raise ValueError(f"a gate: expected prompts of both kinds, found {len(yes)} of one")
    means = [states[kind].mean(axis=0, dtype=np.float64) for kind in (yes, ~yes)]
    weights, middle = means[0] - means[1], (means[0] + means[1]) / 2
    biases = -(weights * middle).sum(axis=-1)
    return [
        Probe(n, w.astype(np.float32), float(b)) for n, (w, b) in enumerate(zip(weights, biases, strict=True))
    ]


def says_yes(probe: Probe, states: Float[np.ndarray, "prompts layers width"]) -> Bool[np.ndarray, " prompts"]:
    """Returns  w · h + b > 0  for each prompt."""
    return states[:, probe.layer].astype(np.float64) @ probe.weight.astype(np.float64) + probe.bias > 0


def accuracies(
    probes: Sequence[Probe],
    states: Float[np.ndarray, "prompts layers width"],
    yes: Bool[np.ndarray, " prompts"],
) -> list[float]:
    """Returns the share of prompts that each probe tells rightly, each of the two kinds counting half."""
    found = [says_yes(probe, states) == yes for probe in probes]
    return [float(np.mean([right[kind].mean() for kind in (yes, ~yes) if kind.any()])) for right in found]
