"""Attention of whole texts: which kernel takes what, and that each gives what einsum gives."""

import importlib.util
import math
import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dera_jax import models
from dera_jax.devices import placement
from dera_jax.models import flash
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.performance.plan import chips, hlo, programs, traffic

CHOICES = {
    # asked, platform, length, head_dim, dtype, softcap
    ("auto", "cpu", 4096, 128, "bfloat16", 0.0): "einsum",
    ("auto", "tpu", 4096, 128, "bfloat16", 0.0): "splash",
    ("auto", "tpu", 4096, 80, "bfloat16", 30.0): "splash",
    ("auto", "tpu", 4096, 128, "float32", 0.0): "einsum",
    ("auto", "tpu", 4096, 128, "float16", 0.0): "einsum",
    ("auto", "tpu", 4000, 128, "bfloat16", 0.0): "einsum",
    ("auto", "tpu", 256, 128, "bfloat16", 0.0): "einsum",
    ("einsum", "tpu", 4096, 128, "bfloat16", 0.0): "einsum",
    ("splash", "cpu", 512, 128, "bfloat16", 0.0): "splash",
    ("splash", "tpu", 513, 128, "bfloat16", 0.0): "einsum",
    ("auto", "gpu", 4096, 128, "bfloat16", 0.0): "cudnn",
    ("auto", "gpu", 4096, 64, "float16", 0.0): "cudnn",
    ("auto", "gpu", 4096, 128, "float32", 0.0): "einsum",
    ("auto", "gpu", 4096, 128, "bfloat16", 30.0): "einsum",
    ("auto", "gpu", 4096, 256, "bfloat16", 0.0): "einsum",
    ("auto", "gpu", 4096, 60, "bfloat16", 0.0): "einsum",
    ("einsum", "gpu", 4096, 128, "bfloat16", 0.0): "einsum",
}
CASES = {
    "causal": (0, 0.0),
    "window": (40, 0.0),
    "window of one tile": (128, 0.0),
    "soft cap": (0, 2.0),
    "window and soft cap": (70, 2.0),
}
"""Window, soft cap."""


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: "-".join(map(str, case)))
def test_choices(case):
    assert flash.choose(*case) == CHOICES[case]


def test_unknown_kinds_are_refused():
    with pytest.raises(
        ValueError, match="attention: expected one of auto, einsum, splash, cudnn, got 'flash'"
    ):
        DecoderConfig(512, 64, 96, 2, 8, 2, 8, 256, attention="flash")


@pytest.fixture
def on_cpu(monkeypatch):
    """The kernels as operations that every platform has."""
    monkeypatch.setattr(flash, "INTERPRET", True)
    monkeypatch.setattr(flash, "CUDNN", "xla")
    monkeypatch.setattr(flash, "SHORTEST", 128)


def texts(length=256, heads=4, kv_heads=2, head_dim=16):
    """Returns queries, keys, values, and segments: a padded row, and one that holds three texts."""
    keys = jax.random.split(jax.random.key(0), 3)
    each = [
        jax.random.normal(key, (2, count, length, head_dim), jnp.bfloat16)
        for key, count in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    ]
    slots = jnp.arange(length)
    return each, jnp.stack([slots >= 77, 1 + (slots >= 100) + (slots >= 161)]).astype(jnp.int32)


def attended(kernel, window, softcap, query, key, value, segments):
    slots = jnp.arange(query.shape[2])
    back = slots[:, None] - slots
    mask = (segments[:, :, None] == segments[:, None]) & (back >= 0) & (back < (window or 10**6))
    mixed = flash.attend_text(kernel, query, key, value, mask, segments, window, 0.3, softcap)
    return jnp.where((segments > 0)[:, None, :, None], mixed, 0).astype(jnp.float32)


def mixed_and_slopes(kernel, case, dtype=jnp.bfloat16):
    """Returns what attention gives, and its gradients for queries, keys and values."""
    (window, softcap), (each, segments) = CASES[case], texts()

    def weighed(*each):
        mixed = attended(kernel, window, softcap, *each, segments)
        return jnp.sum(mixed * jnp.cos(jnp.arange(mixed.size).reshape(mixed.shape))), mixed

    differentiated = jax.jit(jax.value_and_grad(weighed, (0, 1, 2), has_aux=True))
    (_, mixed), slopes = differentiated(*(x.astype(dtype) for x in each))
    return [np.asarray(x, np.float64) for x in (mixed, *slopes)]


@cache
def of_einsum(case):
    """Returns the same of einsum, for either kernel: in bfloat16 and exactly."""
    return [mixed_and_slopes("einsum", case, dtype) for dtype in (jnp.bfloat16, jnp.float32)]


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
@pytest.mark.parametrize("case", CASES)
def test_kernels_give_what_einsum_gives(kernel, case, on_cpu):
    """Forward and backward, within the rounding of bfloat16."""
    there, (einsum, exact) = mixed_and_slopes(kernel, case), of_einsum(case)
    named = zip(("output", "query", "key", "value"), there, einsum, exact, strict=True)
    for name, there, einsum, expected in named:
        error, own = (abs(x - expected).max() / expected.std() for x in (there, einsum))
        print(f"{kernel}, {case}: {name} off by {error:.1e} of its spread, einsum by {own:.1e}")
        assert error < max(0.06, 2 * own)


CONFIG = DecoderConfig(
    vocab_size=61, width=32, mlp_width=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    max_positions=512, dtype="bfloat16", windows=(40, 0),
)  # fmt: skip


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_models_read_padded_and_packed_texts_through_kernels(kernel, on_cpu):
    params = models.init_params(CONFIG, 0)
    tokens = jax.random.randint(jax.random.key(1), (2, 256), 1, 61)
    _, segments = texts()
    found = {}
    for name in ("einsum", kernel):
        model = models.bind(replace(CONFIG, attention=name), params)
        found[name] = (
            jax.jit(model.forward)(tokens, segments > 0),
            jax.jit(model.packed_logits)(tokens, segments),
            *jax.jit(model.prefill)(tokens, segments > 0).keys,
        )
    for expected, there in zip(*found.values(), strict=True):
        if expected.ndim == 3:
            expected, there = (jnp.where((segments > 0)[..., None], x, 0) for x in (expected, there))
        else:  # places of padding hold what nobody reads
            expected, there = (x[:, :, -40:] for x in (expected, there))
        expected, there = (np.asarray(x, np.float32) for x in (expected, there))
        assert abs(there - expected).max() < 0.1 * expected.std()
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*found.values(), strict=True))


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


def compiled_gradient(config, shape, length):
    """Returns the gradient of a loss, compiled for eight TPUs that are not there."""
    mesh = programs.tpu_mesh(chips.parse_slice("v5e:2x4"), shape)
    params = jax.tree.map(
        lambda a, lies: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=lies),
        models.param_shapes(config), placement.param_shardings(config, mesh),
    )  # fmt: skip
    rows = NamedSharding(mesh, PartitionSpec("data"))
    tokens, mask = (jax.ShapeDtypeStruct((2, length), t, sharding=rows) for t in (jnp.int32, jnp.bool_))
    loss = lambda p, t, m: models.bind(config, p).hidden(t, m).astype(jnp.float32).var()  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(params, tokens, mask).compile()


def largest_array(text):
    """Returns the elements of the largest array in a program."""
    shapes = re.findall(r"(?:pred|bf16|[sf]\d+)\[([\d,]+)\]", text)
    return max(math.prod(map(int, dims.split(","))) for dims in shapes)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("shape", "kernel"), [((2, 4), "auto"), ((1, 8), "auto"), ((1, 8), "einsum")])
def test_gradients_compile_for_tpus_without_a_matrix_of_scores(shape, kernel):
    """Heads over four devices, and over eight, more than there are heads of keys."""
    length = 2048
    config = DecoderConfig(64, 128, 128, 1, 8, 4, 64, length, dtype="bfloat16", attention_softcap=30.0)
    text = compiled_gradient(replace(config, attention=kernel), shape, length).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == (3 if kernel == "auto" else 0)
    assert (largest_array(text) < length**2 / 4) == (kernel == "auto")
    # And the walk over the program reads it.
    assert traffic.Walk(hlo.parse(text)).cost.moved > 0
