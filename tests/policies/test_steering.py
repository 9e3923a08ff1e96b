"""Steered policies: torch's logits with hooks, laws of the strength, and files from outside."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from dera_jax import generate, load_policies, load_policy, save_policy, score
from dera_jax.decoding import device_loop
from dera_jax.decoding.complete import MixtureDraw, complete_unshared
from dera_jax.models.trees import flatten
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import held_bytes
from dera_jax.policies.steering import Probe, Steering, read_steering, steered, write_steering
from tests.support import t5_models
from tests.support.shapes import SHAPES
from tests.support.torch_models import our_logits, padded, random_model, save, torch_logits

torch = pytest.importorskip("torch")

PROMPTS = ["Once upon a time", "Lily went to the park.", "The dog was sad"]


def vectors_for(config, layers, seed=0, size=0.5):
    """Returns random vectors behind these blocks."""
    numbers = np.random.default_rng(seed)
    vectors = {n: size * numbers.standard_normal(config.width).astype(np.float32) for n in layers}
    return Steering(config.width, config.num_layers, vectors)


def steered_toy(toy, strength=1.0, seed=0):
    reference, same = load_policies(toy, toy)
    return reference, steered(same, vectors_for(same.config, (1, 2), seed), strength)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_logits_are_those_of_torch_with_hooks(name, tmp_path, toy):
    """Behind blocks of every order of norms, at left-padded and whole rows."""
    model = random_model(SHAPES[name])
    policy = load_policy(save(model, tmp_path, toy))
    layers = (0, policy.config.num_layers - 1)
    steering = vectors_for(policy.config, layers)
    tokens, mask = padded((40, 17))
    plain = our_logits(policy, tokens, mask)[mask]
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))

    def adding(vector):
        def hook(module, inputs, output):
            first = (output[0] if isinstance(output, tuple) else output) - 1.5 * vector
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return hook

    for layer in layers:
        blocks[layer].register_forward_hook(adding(torch.tensor(steering.vectors[layer])))
    expected = torch_logits(model, tokens, mask).numpy()[mask]
    ours = our_logits(steered(policy, steering, -1.5), tokens, mask)[mask]
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert abs(ours - plain).max() > 0.1


def test_strength_0_and_what_adds_up_to_nothing_are_the_model_itself(toy):
    policy, tokens = load_policy(toy), padded((30, 9))
    steering, plain = vectors_for(policy.config, (0, 3)), our_logits(policy, *tokens)
    np.testing.assert_array_equal(our_logits(steered(policy, steering, 0), *tokens), plain)
    back = steered(steered(policy, steering, 2.0), steering, -2.0)
    np.testing.assert_array_equal(our_logits(back, *tokens), plain)


def test_steered_twice_is_steered_by_the_sum(toy):
    policy, tokens = load_policy(toy), padded((30, 9))
    one, other = (vectors_for(policy.config, layers, seed) for layers, seed in [((0,), 1), ((0, 2), 2)])
    both = replace(one, vectors={0: one.vectors[0] + 2 * other.vectors[0], 2: 2 * other.vectors[2]})
    twice = steered(steered(policy, one), other, 2.0)
    np.testing.assert_allclose(
        our_logits(twice, *tokens), our_logits(steered(policy, both), *tokens), atol=1e-5
    )


def test_the_base_is_held_once_and_other_strengths_compile_nothing(toy):
    reference, aligned = steered_toy(toy)
    arrays, own = flatten(reference.params), flatten(aligned.params)
    assert all(own[path] is array for path, array in arrays.items())
    assert held_bytes([reference, aligned]) < 1.02 * held_bytes([reference])
    texts, counts = [], []
    for strength, layers in [(1.0, (1, 2)), (-3.0, (1, 2)), (1.0, (0,))]:
        pair = reference, steered(reference, vectors_for(reference.config, layers), strength)
        texts.append([c.text for c in generate(pair, PROMPTS, 1.0, max_new_tokens=24, rows=5)])
        counts.append(device_loop.decode_chunk._cache_size())
    assert counts[0] == counts[2] and texts[0] != texts[1] != texts[2]


def test_the_dial_mixes_logits_of_steered_and_unsteered(toy):
    """Decoded log-probabilities are those of a mixture that is computed here, from logits of whole texts."""
    reference, aligned = steered_toy(toy, 2.0)
    (made,) = generate((reference, aligned), PROMPTS[:1], 0.7, max_new_tokens=32, seed=4)
    ids = np.array([[*made.request.prompt.tokens[0], *made.tokens]], np.int32)
    mask, start = np.ones(ids.shape, bool), ids.shape[1] - len(made.tokens)
    ours, theirs = (
        np.asarray(our_logits(policy, ids, mask)[0, start - 1 : -1], np.float64)
        for policy in (reference, aligned)
    )
    mixed = 0.3 * ours + 0.7 * theirs
    expected = mixed - np.log(np.exp(mixed).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(made.logprobs, expected[np.arange(len(made.tokens)), made.tokens], atol=1e-4)
    assert abs(ours - theirs).max() > 0.5


@pytest.mark.parametrize("aligned", [2, 1])
def test_ends_of_the_dial_are_the_models_alone(toy, aligned):
    """Read together, members keep to themselves: also two that are steered by different vectors."""
    reference, one = steered_toy(toy, 2.0)
    _, other = steered_toy(toy, 2.0, seed=5)
    other = steered(reference, vectors_for(reference.config, (0, 3), 5))
    models = (reference, one, other)[: aligned + 1]
    for number, policy in enumerate(models):
        lambda_ = tuple(float(n == number) for n in range(1, aligned + 1))
        together = generate(models, PROMPTS, lambda_, max_new_tokens=32, seed=2)
        alone = generate((policy,), PROMPTS, (), max_new_tokens=32, seed=2)
        assert [c.tokens for c in together] == [c.tokens for c in alone]


@pytest.mark.parametrize(
    "draw", [complete_unshared, MixtureDraw(draft="ngram"), MixtureDraw(draft="reference")]
)
def test_rows_are_the_same_however_they_are_decoded(toy, draw):
    pair = steered_toy(toy, 2.0)
    settings = {"max_new_tokens": 32, "num_samples": 2, "seed": 3}
    expected = generate(pair, PROMPTS, 1.5, **settings)
    found = generate(pair, PROMPTS, 1.5, draw=draw, **settings)
    assert [c.tokens for c in found] == [c.tokens for c in expected]


@pytest.mark.parametrize("kind", ["int8", "nf4", "lora"])
def test_quantized_and_adapted_bases(toy, kind):
    """The shift is the same at the first block's output; a base with adapters keeps them."""
    if kind == "lora":
        reference = load_policy(toy)
        aligned = with_lora(reference, 4, 8.0, seed=1)
        noise = np.random.default_rng(0)
        changed = jax.tree.map_with_path(
            lambda path, a: (
                a + 0.1 * noise.standard_normal(a.shape).astype("f4") if path[-1].key == "lora_b" else a
            ),
            aligned.params,
        )
        aligned = replace(aligned, params=changed)
    else:
        reference, aligned = load_policies(toy, toy, quantize=kind)
    shifted = steered(aligned, vectors_for(aligned.config, (1,)), 2.0)
    tokens, mask = padded((20,))
    changed = [np.asarray(our_logits(p, tokens, mask)) for p in (reference, aligned, shifted)]
    assert abs(changed[2] - changed[1]).max() > 0.5
    assert shifted.config.adapters == aligned.config.adapters
    completion = " there was a little girl who had a cat."
    (found,) = score((reference, shifted), PROMPTS[:1], [completion], [0.0, 1.0])
    (alone,) = score((shifted,), PROMPTS[:1], [completion], [()])
    np.testing.assert_allclose(found.logprobs[1], alone.logprobs[0], atol=1e-5)
    together = generate((reference, shifted), PROMPTS, 1.0, max_new_tokens=24)
    assert [c.tokens for c in together] == [
        c.tokens for c in generate((shifted,), PROMPTS, (), max_new_tokens=24)
    ]


def test_what_is_written_is_read(tmp_path):
    numbers = np.random.default_rng(0)
    vectors = {n: numbers.standard_normal(8).astype(np.float32) for n in (0, 3)}
    steering = Steering(8, 4, vectors, Probe(2, numbers.standard_normal(8).astype(np.float32), -0.5))
    write_steering(tmp_path / "s.safetensors", steering)
    found = read_steering(tmp_path / "s.safetensors")
    assert (found.width, found.num_layers, found.probe.layer, found.probe.bias) == (8, 4, 2, -0.5)
    assert found.fingerprint == steering.fingerprint and found.vectors.keys() == vectors.keys()
    np.testing.assert_array_equal(found.probe.weight, steering.probe.weight)


GOOD = {"format": "dera_jax steering", "version": "1", "width": "4", "num_layers": "2"}
ONES = np.ones(4, np.float32)
BROKEN = {
    "no metadata": ({"layer.0": ONES}, None, "expected a file of eval.steer"),
    "another version": ({"layer.0": ONES}, GOOD | {"version": "2"}, "found dera_jax steering 2"),
    "no width": ({"layer.0": ONES}, {k: v for k, v in GOOD.items() if k != "width"}, "width: expected a whole"),
    "a width that is none": ({"layer.0": ONES}, GOOD | {"width": "-4"}, "found -4"),
    "another shape": ({"layer.0": np.ones((4, 1), np.float32)}, GOOD, r"expected shape \(4,\), found \(4, 1\)"),
    "whole numbers": ({"layer.0": np.ones(4, np.int32)}, GOOD, "found I32"),
    "NaN": ({"layer.0": np.array([1, np.nan, 0, 0], np.float32)}, GOOD, "NaN"),
    "a layer out of range": ({"layer.2": ONES}, GOOD, "expected a layer from 0 to 1, found 2"),
    "a layer of another name": ({"layer.00": ONES, "layer.0": ONES}, GOOD, "found layer.00"),
    "a model": ({"model.embed_tokens.weight": ONES}, GOOD, "found model.embed_tokens.weight"),
    "a probe alone": ({"probe.weight": ONES, "probe.bias": ONES[:1]}, GOOD | {"probe_layer": "0"}, "at least"),
    "a probe without its bias": ({"layer.0": ONES, "probe.weight": ONES}, GOOD, "found probe.weight"),
    "a probe out of range": (
        {"layer.0": ONES, "probe.weight": ONES, "probe.bias": ONES[:1]}, GOOD | {"probe_layer": "2"}, "found 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_none(name, tmp_path):
    arrays, told, message = BROKEN[name]
    save_file(arrays, tmp_path / "s.safetensors", metadata=told)
    with pytest.raises(ValueError, match=message):
        read_steering(tmp_path / "s.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a file", b"\xff" * 100])
def test_files_of_another_kind(content, tmp_path):
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_steering(tmp_path / "s.safetensors")
    for missing in (tmp_path / "none", tmp_path, tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(ValueError, match=r"no such file|too long|found a folder"):
            read_steering(missing)


def test_models_that_a_file_is_not_of(toy, tmp_path):
    policy = load_policy(toy)
    own = policy.config.width, policy.config.num_layers
    for width, depth in [(own[0] + 1, own[1]), (own[0], own[1] + 1)]:
        other = Steering(width, depth, {0: np.ones(width, np.float32)})
        with pytest.raises(ValueError, match=f"found width {width} and {depth} layers"):
            steered(policy, other)
    with pytest.raises(ValueError, match="too large for float32"):
        steered(policy, vectors_for(policy.config, (0,)), 1e39)
    with pytest.raises(ValueError, match="expected a finite number"):
        steered(policy, vectors_for(policy.config, (0,)), float("nan"))
    with pytest.raises(ValueError, match="without steering"):
        save_policy(steered(policy, vectors_for(policy.config, (0,))), tmp_path)
    t5 = load_policy(t5_models.save(t5_models.random_model({}), tmp_path))
    with pytest.raises(ValueError, match="encoder-decoder"):
        steered(t5, Steering(t5.config.width, 1, {0: np.ones(t5.config.width, np.float32)}))
