"""A policy over four words whose every completion is listed: its laws as tables, the optimum, realigned decoding."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from dera_jax.data.batches import make_batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.policies.policy import Policy
from dera_jax.realign import mix_logits, strength_weights
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_logits
from tests.support.toy import EOS, all_completions

PROMPT, OTHER = (1, 2, 0, 2), (2, 2, 1)
LONGEST = 3
COMPLETIONS = all_completions(4, LONGEST)
PREFIXES = [prefix for length in range(LONGEST) for prefix in product({*range(4)} - {EOS}, repeat=length)]
"""Wherever a next token is drawn. A table has the log-probabilities of the four tokens at each."""
DECODE = DecodeConfig(max_new_tokens=LONGEST)
BATCH = make_batch([PROMPT] * len(COMPLETIONS), COMPLETIONS)
normalized = partial(log_softmax, axis=-1)
_logits = jax.jit(completion_logits, static_argnames="config")


def gain(tokens) -> float:
    """The reward, of tokens with EOS or without."""
    return float(2 in tokens) - 0.4 * list(tokens).count(1)


REWARD = Reward("has-2-not-1", lambda c: [gain(tokens) for tokens in c.tokens])
GAINS = np.array([gain(completion) for completion in COMPLETIONS])


def steps(completion) -> tuple[list[int], list[int]]:
    """Where a completion stands in a table."""
    return [PREFIXES.index(tuple(completion[:t])) for t in range(len(completion))], list(completion)


def table_of(policy: Policy) -> np.ndarray:
    logits = np.asarray(_logits(policy.config, policy.params, BATCH), float)
    table = np.zeros((len(PREFIXES), 4))
    for row, completion in enumerate(COMPLETIONS):
        table[steps(completion)[0]] = logits[row, : len(completion)]
    return normalized(table)


def of_completions(table: np.ndarray) -> np.ndarray:
    """log π(y|x) of every completion."""
    return np.array([table[steps(completion)].sum() for completion in COMPLETIONS])


def by_token(logprobs: np.ndarray) -> np.ndarray:
    """The table of a distribution over completions: its conditionals."""
    mass = np.zeros((len(PREFIXES), 4))
    for completion, probability in zip(COMPLETIONS, np.exp(logprobs), strict=True):
        mass[steps(completion)] += probability
    return normalized(np.log(mass))


def closed_form(reference: np.ndarray, beta: float) -> np.ndarray:
    """log π*(y|x) with π* ∝ π_ref exp(r/β) (Eq. 2)."""
    return normalized(of_completions(reference) + GAINS / beta)


def realigned(reference: np.ndarray, aligned: np.ndarray, lambda_: float) -> np.ndarray:
    """The table of DeRa (Eq. 6)."""
    weights = jnp.broadcast_to(strength_weights([lambda_]), (len(PREFIXES), 2))
    return normalized(np.asarray(mix_logits(jnp.float32([reference, aligned]), weights), float))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q) of log-probabilities of completions."""
    return float(np.exp(p) @ (p - q))
