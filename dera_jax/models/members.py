"""Policies on one base as one model: what is their own side by side, so that the base is read once."""

from collections.abc import Sequence
from dataclasses import replace

from dera_jax.models.binding import ModelConfig
from dera_jax.models.steering import STEERING
from dera_jax.models.trees import flatten, unflatten

ADAPTER = ("lora_a", "lora_b")
"""What the names of an adapter's parameters end with."""
OWN = (*ADAPTER, STEERING)
"""What the names of all parameters end with that are not the base's."""


def join_adapted(
    configs: Sequence[ModelConfig], params: Sequence[dict]
) -> tuple[tuple[ModelConfig, ...], tuple[dict, ...]]:
    """Returns the same models, neighbours that differ by adapters and steering alone made one of several members.

    Its weights are read once for all members, whose rows stand side by side: row r of member m is row
    r · members + m.
    """
    groups: list[list[int]] = []
    for number in range(len(configs)):
        if groups and _same_base(configs, params, groups[-1][0], number):
            groups[-1].append(number)
        else:
            groups.append([number])
    joined = [_joined([configs[n] for n in group], [params[n] for n in group]) for group in groups]
    return tuple(config for config, _ in joined), tuple(each for _, each in joined)


def _same_base(configs, params, one: int, other: int) -> bool:
    pair = configs[one], configs[other]
    if not any(config.adapters or config.steered for config in pair):
        return False
    bases = [_base(params[number]) for number in (one, other)]
    same = [replace(config, adapters=(), steered=()) for config in pair]
    arrays = bases[0].keys() == bases[1].keys() and all(bases[0][p] is bases[1][p] for p in bases[0])
    return arrays and same[0] == same[1]


def _base(params: dict) -> dict:
    return {path: value for path, value in flatten(params).items() if not path.endswith(OWN)}


def _joined(configs: Sequence[ModelConfig], params: Sequence[dict]) -> tuple[ModelConfig, dict]:
    if len(configs) == 1:
        return configs[0], params[0]
    adapters = tuple(
        replace(one, member=member) for member, config in enumerate(configs) for one in config.adapters
    )
    own = {
        f"{path}{member}": value
        for member, each in enumerate(params)
        for path, value in flatten(each).items()
        if path.endswith(OWN)
    }
    steered = tuple(member for member, config in enumerate(configs) if config.steered)
    config = replace(configs[0], adapters=adapters, steered=steered, members=len(configs))
    return config, unflatten(_base(params[0]) | own)
