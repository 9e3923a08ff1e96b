"""Weight-only quantization: what it does to a matrix, and to every family."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import generate, load_policies, load_policy, save_policy
from dera_jax.data.prompts import Prompt
from dera_jax.data.tokens import encode_prompt
from dera_jax.models.linear import quantize_kernel
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies.policy import with_params
from dera_jax.scoring.divergence import encode_texts
from dera_jax.scoring.precision import precision_cost
from tests.support.shapes import FAMILIES, SHAPES
from tests.support.torch_models import PROMPTS, our_logits, padded, random_model, save

# Dettmers et al., arXiv:2305.14314, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def kernel(inputs=128, outputs=48):
    return jax.random.normal(jax.random.key(0), (inputs, outputs))


def restored(parts, kind):
    """Returns the matrix that a quantized one stands for, in NumPy from the definition."""
    values, scale = np.asarray(parts["kernel"].astype(jnp.int32)), np.asarray(parts["kernel_scale"])
    scale = np.repeat(scale, values.shape[0] // scale.shape[0], axis=0)
    return scale * (values if kind == "int8" else np.array(NF4)[values])


def test_int8_is_the_nearest_of_255_steps():
    exact = np.asarray(kernel())
    parts = quantize_kernel(kernel(), "int8")
    assert parts["kernel"].dtype == jnp.int8 and parts["kernel_scale"].shape == (1, 48)
    scale = np.asarray(parts["kernel_scale"])
    np.testing.assert_allclose(scale[0], abs(exact).max(axis=0) / 127.5, rtol=1e-5)
    assert (abs(restored(parts, "int8") - exact) <= 0.5001 * scale).all()


def test_nf4_is_the_nearest_of_16_values():
    exact = np.asarray(kernel())
    parts = quantize_kernel(kernel(), "nf4")
    assert parts["kernel"].dtype == jnp.uint4 and parts["kernel_scale"].shape == (2, 48)
    scale = np.repeat(np.asarray(parts["kernel_scale"]), 64, axis=0)
    np.testing.assert_allclose(scale[::64], abs(exact.reshape(2, 64, 48)).max(axis=1), rtol=1e-5)
    nearest = abs(exact[..., None] / scale[..., None] - np.array(NF4)).min(axis=-1) * scale
    np.testing.assert_allclose(abs(restored(parts, "nf4") - exact), nearest, atol=1e-6)
    assert quantize_kernel(kernel(96), "nf4")["kernel_scale"].shape == (1, 48)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_model_is_the_model_of_the_restored_weights(name, kind, tmp_path, toy):
    folder = save(random_model(SHAPES[name]), tmp_path, toy)
    full, quantized = load_policy(folder), load_policy(folder, quantize=kind)
    flat = flatten(quantized.params)
    changed = {path.removesuffix("_scale") for path in flat if path.endswith("kernel_scale")}
    kernels = {path for path in flatten(full.params) if path.endswith(".kernel")}
    assert changed == kernels - {"head.kernel"}
    same = {
        path: jnp.asarray(
            restored({"kernel": flat[path], "kernel_scale": flat[f"{path}_scale"]}, kind), "float32"
        )
        for path in changed
    }
    stands_for = with_params(full, unflatten(flatten(full.params) | same))
    tokens, mask = padded()
    ours = our_logits(quantized, tokens, mask)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours[mask], our_logits(stands_for, tokens, mask)[mask], atol=5e-5)
    error = abs(ours - our_logits(full, tokens, mask))[mask].mean()
    print(f"{name} {kind}: mean error of logits {error:.4f}")
    assert 1e-4 < error < {"int8": 0.05, "nf4": 0.7}[kind]


def test_each_model_in_its_own_precision(tmp_path, toy):
    folder = save(random_model(SHAPES["llama"]), tmp_path, toy)
    pair = load_policies(folder, folder, quantize=[None, "int8"])
    assert [policy.config.quantization for policy in pair] == [None, "int8"]
    endless = [replace(policy, eos_ids=()) for policy in pair]
    settings = {"temperature": 0.0, "max_new_tokens": 8, "rows": 4}
    for number, strength in enumerate((0.0, 1.0)):
        mixed = generate(endless, PROMPTS, strength, **settings)
        alone = generate((endless[number],), PROMPTS, (), **settings)
        assert [c.tokens for c in mixed] == [c.tokens for c in alone]


def test_what_it_saves(toy):
    full, int8 = load_policy(toy), load_policy(toy, quantize="int8")
    blocks = [sum(a.nbytes for a in jax.tree.leaves(p.params["blocks"])) for p in (full, int8)]
    assert blocks[1] < 0.3 * blocks[0]


def test_bfloat16_stays_bfloat16(toy):
    policy = load_policy(toy, "bfloat16", quantize="int8")
    dtypes = {path.rpartition(".")[2]: str(a.dtype) for path, a in flatten(policy.params).items()}
    assert dtypes == {
        "embedding": "bfloat16",
        "scale": "bfloat16",
        "kernel": "int8",
        "kernel_scale": "float32",
    }


def test_refusals(tmp_path, toy):
    with pytest.raises(ValueError, match="quantize: expected one of int8, nf4, got 'int4'"):
        load_policy(toy, quantize="int4")
    with pytest.raises(ValueError, match="quantize: expected one for each of 2 models, found 1"):
        load_policies(toy, toy, quantize=["int8"])
    with pytest.raises(ValueError, match="expected weights in full precision, found int8"):
        save_policy(load_policy(toy, quantize="int8"), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.fixture(scope="module")
def quantized_pair(tmp_path_factory, pair):
    folders = [tmp_path_factory.mktemp(name) for name in ("reference", "aligned")]
    for policy, folder in zip(pair, folders, strict=True):
        save_policy(policy, folder)
    return pair, {kind: load_policies(*folders, quantize=kind) for kind in ("int8", "nf4")}


TEXTS = [
    Prompt(n, text=text)
    for n, text in enumerate(["Lily went to the park with her mom.", "Tom had a red ball."])
]
STRENGTHS = [(0.0,), (0.5,), (1.0,), (2.0,), (4.0,)]


@pytest.mark.slow
def test_costs_are_the_divergences(quantized_pair):
    """At λ = 0 and 1 each model's own, in NumPy; in between and beyond of the mixtures."""
    full, lower = quantized_pair[0], quantized_pair[1]["nf4"]
    found = precision_cost(full, lower, encode_texts(full, TEXTS)[0], STRENGTHS, rows=2)
    by_hand = []
    for text in TEXTS:
        ids = np.array([encode_prompt(full[0].tokenizer, text.text)])
        logits = [np.float64(our_logits(p, ids, ids >= 0))[0, :-1] for p in (*full, *lower)]
        for (strength,) in STRENGTHS:
            mixed = [(1 - strength) * h[0] + strength * h[1] for h in (logits[:2], logits[2:])]
            exact, rounded = (h - np.log(np.exp(h).sum(-1, keepdims=True)) for h in mixed)
            by_hand.append((strength, (np.exp(rounded) * (rounded - exact)).sum(-1)))
    for cost in found:
        kl = np.concatenate([kl for strength, kl in by_hand if strength == cost.lambda_[0]])
        np.testing.assert_allclose(cost.kl.mean, kl.mean(), rtol=1e-3)
    assert [cost.amplification for cost in found] == [1, 1, 1, 3, 7]


@pytest.mark.slow
def test_costs_grow_with_the_strength_and_fall_with_the_bits(quantized_pair):
    full, lower = quantized_pair
    texts, _ = encode_texts(full, TEXTS)
    int8, nf4 = (precision_cost(full, lower[kind], texts, STRENGTHS, 2) for kind in ("int8", "nf4"))
    for coarse, fine in zip(nf4, int8, strict=True):
        assert coarse.kl.mean > 5 * fine.kl.mean > 0
        assert coarse.same_choice.mean <= fine.same_choice.mean
    assert int8[-1].kl.mean > int8[-2].kl.mean > int8[2].kl.mean
    nothing = precision_cost(full, full, texts, STRENGTHS, 2)
    assert all(cost.kl.mean == 0 and cost.same_choice.mean == 1 for cost in nothing)
