"""What every model gives to the loop, and how a configuration becomes one.

A model is a static `config` and a plain dict of arrays, `params`. Inside a jitted function,
`bind(config, params)` makes it callable. The loop, scoring and training ask it for three things:

    forward(tokens, mask, last) -> logits           every position at once, of the last few
    prefill(tokens, mask) -> cache                  a left-padded prompt, once
    step(token, position, cache) -> logits, cache   one more token

A cache is a tuple of arrays with rows as the first axis.
"""

from functools import cache

from flax import nnx

from dera_jax.models.decoder import Decoder, DecoderConfig
from dera_jax.models.layers import KVCache, grow_cache

ModelConfig = DecoderConfig

__all__ = ["KVCache", "ModelConfig", "bind", "grow_cache", "init_params", "param_shapes"]


def bind(config: ModelConfig, params: dict) -> nnx.Module:
    """Returns the model that `config` describes with the arrays of `params`. For use under jit."""
    return nnx.merge(_abstract(config)[0], params)


def param_shapes(config: ModelConfig) -> dict:
    """Returns the nested dict of `jax.ShapeDtypeStruct` that `params` has to match."""
    return _abstract(config)[1]


def init_params(config: ModelConfig, seed: int) -> dict:
    """Returns random parameters, for training from scratch."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(seed)), nnx.Param))


@cache
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)
