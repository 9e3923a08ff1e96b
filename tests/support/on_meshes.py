"""Pairs on meshes, and how far their completions are from one device's."""

from dataclasses import replace

import jax
import numpy as np

from dera_jax import load_policy
from dera_jax.devices import placement
from dera_jax.policies import low_rank
from dera_jax.policies import policy as policies_policy
from dera_jax.policies.policy import with_params
from dera_jax.policies.steering import Steering, steered

TOY = policies_policy.TOY / "reference"


def noisy(policy, seed, size=0.1):
    """Returns the policy with other parameters, near its own."""
    noise = np.random.default_rng(seed)
    changed = jax.tree.map(
        lambda a: a * (1 + size * noise.standard_normal(a.shape).astype(a.dtype)), policy.params
    )
    return with_params(policy, changed)


def on_mesh(pair, mesh):
    if mesh is None:
        return pair
    return tuple(with_params(policy, placement.shard_flat(policy.params, mesh)) for policy in pair)


def plain_pair():
    policy = load_policy(TOY)
    return policy, noisy(policy, 0)


def adapted_pair():
    """Two adapters on one base, whose members are decoded in one pass."""
    pair = [low_rank.with_lora(load_policy(TOY), 4, 8.0, seed=seed) for seed in (1, 2)]
    # B starts at 0: such adapters would change nothing.
    moved = [
        with_params(policy, jax.tree.map_with_path(lambda path, a, s=seed: _moved(path, a, s), policy.params))
        for seed, policy in enumerate(pair)
    ]
    base = moved[0].params
    shared = jax.tree.map_with_path(
        lambda path, own, first: own if "lora" in path[-1].key else first, moved[1].params, base
    )
    return moved[0], replace(moved[1], params=shared)


def steered_pair():
    """A model and itself with a vector behind two blocks, decoded in one pass."""
    policy = load_policy(TOY)
    width, layers = policy.config.width, policy.config.num_layers
    vectors = np.random.default_rng(3).standard_normal((2, width)).astype(np.float32)
    return policy, steered(policy, Steering(width, layers, {0: vectors[0], layers - 1: vectors[1]}), 0.5)


def _moved(path, value, seed):
    if path[-1].key != "lora_b":
        return value
    return value + 0.05 * np.random.default_rng(seed).standard_normal(value.shape).astype(value.dtype)


def compare(ours, theirs):
    """Returns rows that part from one another, tokens before that, and how far apart log-probabilities are."""
    changed, tokens, apart = 0, 0, 0.0
    for one, two in zip(ours, theirs, strict=True):
        same = [a == b for a, b in zip(one.tokens, two.tokens, strict=False)]
        end = same.index(False) if False in same else len(same)
        changed += end < max(len(one.tokens), len(two.tokens))
        tokens += end
        scale = np.abs(one.model_logprobs[:end]).max(initial=1.0)
        apart = max(
            apart, np.abs(one.model_logprobs[:end] - two.model_logprobs[:end]).max(initial=0.0) / scale
        )
    return changed, tokens, float(apart)
