"""What a command does before its first token: how often it traces and compiles."""

from collections import Counter

import jax
import pytest
from flax import nnx

from dera_jax import load_policies, models, sweep
from dera_jax.decoding import device_loop, state
from dera_jax.models import binding, decoder, t5
from dera_jax.models.keys import seed_key
from tests.support.tiny_models import configs, random_batch, random_params


def test_a_prompt_takes_one_compilation_of_each_program(toy):
    """Other strengths, other texts of its bucket and another pair take no more."""
    policies = load_policies()
    programs = (
        device_loop.prefill_prompts,
        state.empty_state,
        state.fill_slots,
        device_loop.decode_chunk,
    )

    def made(policies, prompt, lambdas):
        before = [program._cache_size() for program in programs]
        list(sweep(policies, [prompt], lambdas, rows=3, max_new_tokens=40))
        return [program._cache_size() - count for program, count in zip(programs, before, strict=True)]

    jax.clear_caches()
    assert made(policies, "Once upon a time", [1]) == [1, 1, 1, 1]
    assert made(policies, "Lily had a dog", [0, 0.5, 2]) == [0, 0, 0, 0]
    assert made(policies[::-1], "Once upon a time", [1]) == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["llama, biases", "gemma2", "t5 v1.1, tied"])
def test_blocks_of_a_kind_are_traced_once(name, monkeypatch):
    config = configs()[name]
    traced = Counter()
    for module in (decoder.FeedForward, t5.FeedForward):

        def counted(self, x, original=module.__call__):
            traced[type(self).__name__] += 1
            return original(self, x)

        monkeypatch.setattr(module, "__call__", counted)
    jax.clear_caches()
    batch, shapes = random_batch(), models.param_shapes(config)
    tokens, mask = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (batch.tokens, batch.mask))
    jax.eval_shape(lambda p, t, m: models.bind(config, p).prefill(t, m), shapes, tokens, mask)
    kinds = (
        len({config.window(layer) for layer in range(config.num_layers)}) if not name.startswith("t5") else 1
    )
    assert sum(traced.values()) == kinds


@pytest.mark.parametrize(
    "name", ["llama, biases", "gpt2", "t5 v1.1, tied", "llama, lora", "llama, int8, lora"]
)
def test_shapes_are_those_of_parameters(name):
    """Though no random numbers are counted for them."""
    config = configs()[name]
    found = jax.tree.map(lambda a: (a.shape, a.dtype), models.param_shapes(config))
    assert found == jax.tree.map(lambda a: (a.shape, a.dtype), random_params(config))
    whole = nnx.split(binding._build(config, nnx.Rngs(seed_key(0))))[0]
    assert whole == binding._abstract(config)[0]
