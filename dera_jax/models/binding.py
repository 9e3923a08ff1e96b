"""From a configuration to a model: shapes, initial parameters, and a module bound to its arrays."""

import math
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx

from dera_jax.models.attention import BLOCK
from dera_jax.models.caches import grow_cache
from dera_jax.models.decoder import Decoder
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.keys import seed_key
from dera_jax.models.linear import Linear, Shapes, WeightsConfig
from dera_jax.models.reward import RewardConfig, RewardModel
from dera_jax.models.t5 import T5
from dera_jax.models.t5_config import T5Config
from dera_jax.models.value import HEAD, ValueConfig, ValueModel

ModelConfig = DecoderConfig | T5Config
MODULES = {DecoderConfig: Decoder, T5Config: T5, RewardConfig: RewardModel, ValueConfig: ValueModel}


def bind(config: WeightsConfig, params: dict) -> nnx.Module:
    """Returns the model that `config` describes with the arrays of `params`. For use under jit."""
    return nnx.merge(_abstract(config)[0], params)


def param_shapes(config: WeightsConfig) -> dict:
    """Returns the nested dict of `jax.ShapeDtypeStruct` that `params` has to match."""
    return _abstract(config)[1]


def init_params(config: WeightsConfig, seed: int) -> dict:
    """Returns random parameters, for training from scratch."""
    return nnx.to_pure_dict(nnx.state(_build(config, nnx.Rngs(seed_key(seed))), nnx.Param))


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
            if path not in ("head", "score") and not path.startswith(f"{HEAD}."):
                linear.quantize(config.quantization)
    for adapter in config.adapters:
        maps[adapter.path].adapt(adapter, config.members, rngs)
    return model


@cache
def _abstract(config: WeightsConfig) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: _build(config, Shapes())))
    return graphdef, nnx.to_pure_dict(state)
