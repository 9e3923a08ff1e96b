"""The four questions to a chain, answered without sampling."""

from collections.abc import Iterator, Sequence

import numpy as np

from scripts.chain.model import Chain, Measured, Tilt

LONGEST, BAND = 128, (40, 60)
LAMBDAS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0, 3.0)
BETAS = (0.1, 0.5, 1.0)
"""KL strengths of the aligned model."""
STEPS = (8, 40, 160)
"""Of exact gradient steps."""
RATE = 0.25
"""Of a step, the same at every KL strength, as trainings have it."""
SOFTNESS = (0.0, 5.0, 20.0)
"""Words over which a reward falls from 0 to −1 beside the band; 0: at once."""


def reward(softness: float = 0.0) -> np.ndarray:
    """Returns the reward of each length: 0 in the band, −1 far from it; −1 of texts that are cut off."""
    low, high = BAND
    lengths = np.arange(LONGEST)
    outside = np.maximum(np.maximum(low - lengths, lengths - high), 0)
    fall = np.minimum(outside / softness, 1.0) if softness else (outside > 0).astype(float)
    return np.append(-fall, -1.0)


def chain_of(transitions: np.ndarray, softness: float = 0.0) -> Chain:
    """Returns the chain with a length reward."""
    return Chain(transitions, 0, 0, reward(softness))


def strengths(
    chain: Chain, aligned: Tilt, beta: float, steps: int | None, lambdas: Sequence[float] = LAMBDAS
) -> Iterator[dict]:
    """Yields what a pair does at each λ, beside the optimum and a model trained at β/λ.

    Args:
      aligned: the aligned model.
      steps: of the training at β/λ; None: the optimum stands for it.
    """
    for lambda_ in lambdas:
        target = beta / lambda_
        optimum = chain.optimum(target)
        retrained = optimum if steps is None else chain.trained(target, steps, RATE)
        found = {
            "optimum": optimum,
            "retrained": retrained,
            "responses": chain.response_mixture(aligned, lambda_)[0],
            "tokens": chain.token_mixture(aligned, lambda_),
        }
        measured = {name: chain.measure(policy) for name, policy in found.items()}
        yield {
            "lambda": lambda_,
            "gap": _gap(measured),
            **{name: {"reward": each.reward, "kl": each.kl} for name, each in measured.items()},
            "distance": chain.distance(retrained, target),
        }


def _gap(measured: dict[str, Measured]) -> dict[str, float]:
    """Returns what DeRa has more of the reward than the retrained model, and the three parts that sum to it."""
    reward = {name: each.reward for name, each in measured.items()}
    return {
        "whole": reward["tokens"] - reward["retrained"],
        "per_token": reward["tokens"] - reward["responses"],
        "aligned": reward["responses"] - reward["optimum"],
        "retrained": reward["optimum"] - reward["retrained"],
    }


def measure_all(transitions: np.ndarray) -> dict:
    """Returns the answers.

    perfect: by β, the pair whose aligned model is the optimum. trained: by β and steps, pairs and retrained models of
    so many steps. soft: at β = ½, perfect pairs of softer rewards.
    """
    chain = chain_of(transitions)
    own = chain.measure(chain.plain)
    trained = []
    for beta in (0.1, 0.5):
        for steps in STEPS:
            aligned = chain.trained(beta, steps, RATE)
            trained.append({
                "beta": beta, "steps": steps, "distance": chain.distance(aligned, beta),
                "strengths": list(strengths(chain, aligned, beta, steps)),
            })  # fmt: skip
    return {
        "words": len(transitions),
        "longest": LONGEST,
        "band": BAND,
        "in_band": float(own.lengths[BAND[0] : BAND[1] + 1].sum()),
        "perfect": [
            {"beta": beta, "strengths": list(strengths(chain, chain.optimum(beta), beta, None))}
            for beta in BETAS
        ],
        "trained": trained,
        "soft": [
            {"softness": softness, "strengths": list(strengths(soft, soft.optimum(0.5), 0.5, None))}
            for softness in SOFTNESS
            for soft in [chain_of(transitions, softness)]
        ],
    }
