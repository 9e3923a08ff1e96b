"""Value heads in folders: to the bit there and back, on the model they were trained on, as nothing else."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policies, load_policy, models, save_policy, score
from dera_jax.data.batches import make_batch
from dera_jax.models.trees import flatten
from dera_jax.policies.combine import combine
from dera_jax.policies.load import load_value_policy
from dera_jax.policies.sizes import read_size
from dera_jax.policies.value_heads import fresh_value_head
from dera_jax.scoring.logprobs import completion_hidden, completion_logits
from tests.support.value_heads import random_value_head, save_random

BATCH = make_batch([(1, 40, 50, 60), (1, 70)], [(80, 90, 100), (110, 2)])


def values_of(policy, batch=BATCH):
    return np.asarray(
        jax.jit(completion_logits, static_argnames="config")(policy.config, policy.params, batch)
    )


@pytest.fixture(scope="module")
def reference(toy):
    return load_policy(toy)


@pytest.fixture(scope="module")
def saved(toy, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "value"
    return folder, save_random(reference, str(toy), folder)


@pytest.mark.bits
def test_a_head_comes_back_to_the_bit(toy, saved):
    folder, value = saved
    alone, (reference, beside) = load_value_policy(folder), load_policies(toy, folder)
    for found in (alone, beside):
        ours, theirs = flatten(found.params), flatten(value.params)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
        assert found.fingerprint == alone.fingerprint != reference.fingerprint == found.value_of
        np.testing.assert_array_equal(values_of(found), values_of(value))
    # The arrays of the language model are there once.
    mine = flatten(reference.params)
    assert all(flatten(beside.params)[path] is mine[path] for path in mine)
    assert {path.name for path in folder.iterdir()} == {
        "value_head.safetensors",
        "value_config.json",
        "manifest.json",
    }


@pytest.mark.parametrize("tied", [False, True])
def test_values_are_those_of_the_equation(reference, tied):
    if tied:
        params = {name: value for name, value in reference.params.items() if name != "head"}
        config = replace(reference.config, tie_embeddings=True)
        reference = replace(reference, config=config, params=params)
    value = random_value_head(reference)
    hidden = np.asarray(completion_hidden(reference.config, reference.params, BATCH), float)
    h = {path: np.asarray(array, float) for path, array in flatten(value.params["value_head"]).items()}
    inner = hidden @ h["inner.kernel"] + h["inner.bias"]
    query = inner / (1 + np.exp(-inner)) @ h["outer.kernel"] + h["outer.bias"]
    tied = reference.config.tie_embeddings
    words = reference.params["embed"]["embedding"].T if tied else reference.params["head"]["kernel"]
    expected = query @ np.asarray(words, float) + hidden @ h["level.kernel"] + h["level.bias"]
    np.testing.assert_allclose(values_of(value), expected, atol=1e-4)
    assert not values_of(fresh_value_head(reference, 3)).any()


def test_step_by_step_it_gives_what_it_gives_at_once(saved):
    _, value = saved
    prompt, completion = (1, 40, 50, 60), (80, 90, 100)

    def read(params):
        model = models.bind(value.config, params)
        cache = model.prefill(jnp.array([prompt[:-1]]), jnp.ones((1, 3), bool))
        recent, found = models.no_recent(cache, 4), []
        for place, token in enumerate((prompt[-1], *completion[:-1]), 3):
            logits, recent = model.step(jnp.array([token]), jnp.array([place]), cache, recent)
            found.append(logits[0])
        return jnp.stack(found)

    at_once = values_of(value, make_batch([prompt], [completion]))[0, :3]
    np.testing.assert_allclose(jax.jit(read)(value.params), at_once, atol=2e-5)


def damaged(folder, tmp_path, what):
    copy = tmp_path / "value"
    shutil.copytree(folder, copy)
    file, config = copy / "value_head.safetensors", copy / "value_config.json"
    tensors = load_file(file)
    if what == "missing":
        del tensors["outer.bias"]
    elif what == "unknown":
        tensors["more"] = np.zeros(2, np.float32)
    elif what == "shape":
        tensors["inner.kernel"] = np.zeros((3, 3), np.float32)
    elif what == "nan":
        tensors["level.bias"] = np.array([np.nan], np.float32)
    elif what == "config":
        config.write_text(json.dumps({"reference": "x"}))
    save_file(tensors, file)
    if what == "cut":
        file.write_bytes(file.read_bytes()[:40])
    elif what == "gone":
        file.unlink()
    return copy


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "found no tensor outer.bias"),
        ("unknown", "found an unknown tensor more"),
        ("shape", r"tensor inner.kernel: expected shape \(\d+, \d+\) for .*, found \(3, 3\)"),
        ("nan", "tensor level.bias holds NaN"),
        ("config", "value_config.json: .*fingerprint"),
        ("cut", "value_head.safetensors"),
        ("gone", "value_head.safetensors: no such file"),
    ],
)
def test_damage_is_a_line(toy, saved, tmp_path, what, said):
    folder = damaged(saved[0], tmp_path, what)
    for load in (lambda: load_policies(toy, folder), lambda: load_value_policy(folder)):
        with pytest.raises(ValueError, match=said) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_a_head_of_another_model_is_a_line(pair, saved, tmp_path):
    save_policy(pair[1], tmp_path / "other")
    with pytest.raises(ValueError, match=r"the value head was trained on .*toy/reference, here it stands on"):
        load_policies(tmp_path / "other", saved[0])


def test_a_reference_that_is_gone_is_a_line(reference, tmp_path):
    save_random(reference, "/nowhere/model", tmp_path / "value")
    with pytest.raises(ValueError, match=r"value_config.json: reference: /nowhere/model: no such folder"):
        load_value_policy(tmp_path / "value")


def test_where_logits_are_asked_for_a_head_is_a_line(toy, reference, saved):
    folder, value = saved
    for load in (
        lambda: load_policy(folder),
        lambda: load_policies(folder, toy),
        lambda: load_policies(toy, [folder, toy]),
    ):
        with pytest.raises(ValueError, match="expected a language model, found a value head"):
            load()
    for use in (
        lambda: score((reference, value), ["x"], ["y"], [0.5]),
        lambda: combine((reference, value), (0.5,)),
        lambda: fresh_value_head(value, 0),
    ):
        with pytest.raises(ValueError, match="expected a language model, found a value head"):
            use()
    with pytest.raises(ValueError, match=r"expected a value head, found no value_config.json"):
        load_value_policy(toy)


def test_its_size_is_that_of_the_model_it_stands_on(toy, saved):
    assert read_size(str(saved[0])).config == read_size(str(toy)).config
