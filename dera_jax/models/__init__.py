"""What every model gives to the loop, and how a configuration becomes one.

A model is a static `config` and a plain dict of arrays, `params`. Inside a jitted function,
`bind(config, params)` makes it callable. The loop, scoring and training ask it for three things:

    completion_logits(tokens, mask, count) -> logits   what the last `count` tokens were drawn from
    prefill(tokens, mask) -> cache                     a left-padded context, once
    step(token, position, cache, recent) -> logits, recent      one more token

A cache is a named tuple of arrays with rows as the first axis, `mask` and `index` among them. Steps only read
it: what they add is in `recent` until `store_recent`. What of a prompt is context and what is the first token
to feed, `split_prompt` tells.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx

from dera_jax.keys import seed_key
from dera_jax.models.attention import BLOCK
from dera_jax.models.caches import (
    KVCache,
    Recent,
    fit_cache,
    fitted,
    grow_cache,
    no_recent,
    store_recent,
    without_padding,
)
from dera_jax.models.decoder import Decoder, DecoderConfig
from dera_jax.models.linear import Linear, Shapes, WeightsConfig
from dera_jax.models.reward import RewardConfig, RewardModel
from dera_jax.models.t5 import T5, T5Config
from dera_jax.trees import flatten, unflatten

ModelConfig = DecoderConfig | T5Config
ADAPTER = ("lora_a", "lora_b")
"""What the names of an adapter's parameters end with."""
MODULES = {DecoderConfig: Decoder, T5Config: T5, RewardConfig: RewardModel}

__all__ = [
    "BLOCK",
    "KVCache",
    "ModelConfig",
    "Recent",
    "bind",
    "cache_bytes",
    "fit_cache",
    "fitted",
    "grow_cache",
    "init_params",
    "join_adapted",
    "linear_maps",
    "no_recent",
    "param_shapes",
    "split_prompt",
    "store_recent",
    "whole_blocks",
    "without_padding",
]


def bind(config: WeightsConfig, params: dict) -> nnx.Module:
    """Returns the model that `config` describes with the arrays of `params`. For use under jit."""
    return nnx.merge(_abstract(config)[0], params)


def param_shapes(config: WeightsConfig) -> dict:
    """Returns the nested dict of `jax.ShapeDtypeStruct` that `params` has to match."""
    return _abstract(config)[1]


def init_params(config: WeightsConfig, seed: int) -> dict:
    """Returns random parameters, for training from scratch."""
    return nnx.to_pure_dict(nnx.state(_build(config, nnx.Rngs(seed_key(seed))), nnx.Param))


def join_adapted(
    configs: Sequence[ModelConfig], params: Sequence[dict]
) -> tuple[tuple[ModelConfig, ...], tuple[dict, ...]]:
    """Returns the same models, neighbours that differ by their adapters alone made one of several members.

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
    if not (configs[one].adapters or configs[other].adapters):
        return False
    bases = [_base(params[number]) for number in (one, other)]
    same = [replace(configs[number], adapters=()) for number in (one, other)]
    arrays = bases[0].keys() == bases[1].keys() and all(bases[0][p] is bases[1][p] for p in bases[0])
    return arrays and same[0] == same[1]


def _base(params: dict) -> dict:
    return {path: value for path, value in flatten(params).items() if not path.endswith(ADAPTER)}


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
        if path.endswith(ADAPTER)
    }
    config = replace(configs[0], adapters=adapters, members=len(configs))
    return config, unflatten(_base(params[0]) | own)


def split_prompt(start_token: int | None, tokens: Sequence[int]) -> tuple[Sequence[int], int]:
    """Returns what is prefilled of a prompt, and the token that the first step is fed.

    Args:
      start_token: of the model's configuration; None where the model continues the prompt itself.
    """
    return (tokens[:-1], tokens[-1]) if start_token is None else (tokens, start_token)


def whole_blocks(slots: int) -> int:
    """Returns the next multiple of `BLOCK`, two at least, for caches.

    Those of other sizes are read in two parts, which copies them; a single block is multiplied by other
    instructions than several are, on some processors, and would round otherwise.
    """
    return max(2 * BLOCK, slots + -slots % BLOCK)


def cache_bytes(config: ModelConfig, rows: int, bucket: int, new_tokens: int) -> int:
    """Returns the bytes of a cache of `rows` prompts of `bucket` tokens, with room for `new_tokens` more."""

    def prefilled(params):
        tokens = jnp.zeros((rows, bucket), jnp.int32)
        return grow_cache(bind(config, params).prefill(tokens, tokens == 0), new_tokens, config.windows)

    shapes = jax.eval_shape(prefilled, param_shapes(config))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes))


def linear_maps(model: nnx.Module) -> dict[str, Linear]:
    """Returns the linear maps of `model` by their paths, such as `blocks.3.attention.query`."""
    found = nnx.iter_modules(model)
    return {".".join(map(str, path)): module for path, module in found if isinstance(module, Linear)}


def _build(config: WeightsConfig, rngs: nnx.Rngs) -> nnx.Module:
    model = MODULES[type(config)](config, rngs)
    maps = linear_maps(model)
    if config.quantization:
        for path, linear in maps.items():
            if path not in ("head", "score"):
                linear.quantize(config.quantization)
    for adapter in config.adapters:
        maps[adapter.path].adapt(adapter, config.members, rngs)
    return model


@cache
def _abstract(config: WeightsConfig) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: _build(config, Shapes())))
    return graphdef, nnx.to_pure_dict(state)
