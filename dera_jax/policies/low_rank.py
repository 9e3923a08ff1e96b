"""Adapters to train on a policy."""

import math
from dataclasses import replace

from dera_jax.common.checks import check_count, check_number, check_seed
from dera_jax.policies import families, lora
from dera_jax.policies.names import NameMap
from dera_jax.policies.policy import Policy


def with_lora(
    policy: Policy,
    rank: int,
    alpha: float,
    targets: lora.Targets = "all-linear",
    seed: int = 0,
    *,
    rslora: bool = False,
) -> Policy:
    """Returns `policy` with low-rank adapters that change nothing yet; arrays of the base are shared.

    A policy that has these very adapters already is returned as it is, to be trained further.

    Args:
      rank: of every adapter, ≥ 1.
      alpha: > 0; an adapter is multiplied by alpha/rank, or by alpha/√rank with `rslora`.
      targets: names of linear maps in the family's files, such as `q_proj`; `all-linear`: all but the
        head; None: those of queries and values.

    Raises:
      ValueError: a setting out of its range, names that the model does not have, other adapters on it.
    """
    check_count("rank", rank)
    check_number("alpha", alpha, 0.0, math.inf)
    if alpha == 0:
        raise ValueError("alpha: expected a number above 0, got 0")
    check_seed(seed)
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    paths = lora.adapted_maps(policy.config, name_map(policy), targets)
    there = policy.config.adapters
    if not there:
        config, params = lora.add_adapters(policy.config, policy.params, paths, rank, scale, seed)
        return replace(policy, config=config, params=params)
    asked = {(path, rank, round(scale, 9)) for path in paths}
    if {(one.path, one.rank, round(one.scale, 9)) for one in there} != asked:
        raise ValueError(
            f"{policy.name}: has adapters of rank {there[0].rank} and scale {there[0].scale:g} on {len(there)} "
            f"linear maps, asked: rank {rank} and scale {scale:g} on {len(paths)}; "
            "train those further, or start from a model that they are merged into"
        )
    return policy


def name_map(policy: Policy) -> NameMap:
    return families.FAMILIES[families.read_config(policy.folder)["model_type"]].names
