"""Networks: layers, attention, caches, decoder families, T5, reward head; how one is bound to its parameters.

A model is a static `config` and a plain dict of arrays, `params`. Inside a jitted function,
`bind(config, params)` makes it callable. The loop, scoring and training ask it for this:

    completion_hidden(tokens, mask, count) -> hidden   what the head reads for the last `count` tokens
    logits(hidden) -> logits                           what the head makes of it, of all places or a few
    completion_logits(tokens, mask, count) -> logits   both: what the last `count` tokens were drawn from
    prefill(tokens, mask) -> cache                     a left-padded context, once
    step(token, position, cache, recent) -> logits, recent      one more token
    steps(tokens, positions, cache, recent) -> logits, recent   several more tokens in one pass

A cache is a named tuple of arrays with rows as the first axis, `mask` and `index` among them. Steps only read
it: what they add is in `recent` until `store_recent`. What of a prompt is context and what is the first token
to feed, `split_prompt` tells.
"""

from dera_jax.models.attention import BLOCK
from dera_jax.models.binding import (
    ModelConfig,
    bind,
    cache_bytes,
    init_params,
    linear_maps,
    param_shapes,
    split_prompt,
    whole_blocks,
)
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
from dera_jax.models.members import ADAPTER, join_adapted

__all__ = [
    "ADAPTER",
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
