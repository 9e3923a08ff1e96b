"""The average of the parameters: optax's and numpy's, what is made of it, and a run that goes on."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from dera_jax.policies import manifests
from dera_jax.training import runs
from dera_jax.training.averaging import averaged, chosen
from dera_jax.training.config import PreferenceConfig, RunConfig
from dera_jax.training.loop import fit
from dera_jax.training.preferences import preference_method
from dera_jax.training.sft import sft_method
from tests.support.tiny_trainings import CONFIG, EXAMPLES, PAIRS, assert_same

LONG = replace(CONFIG, max_steps=6)
BEST = runs.Best("eval_first")


def states_of(method, config, out):
    return [jax.device_get(state) for _, state, _ in fit(method, config, RunConfig(), out)]


@pytest.mark.parametrize("decay", [0.3, 0.9, 1.0])
def test_it_is_the_weighted_mean_of_what_each_step_left(decay, tiny, tmp_path):
    states = states_of(averaged(sft_method(tiny, EXAMPLES, LONG), decay), LONG, tmp_path)
    moving = optax.ema(min(decay, 1 - 1e-7), debias=True)
    kept = moving.init(states[0].params)
    for t, state in enumerate(states, 1):
        weights = decay ** np.arange(t - 1, -1, -1)
        plain = {
            name: sum(w * each.params[name] for w, each in zip(weights, states, strict=False)) / weights.sum()
            for name in state.params
        }
        assert_same(chosen(state), plain, atol=1e-6)
        if decay < 1:  # optax's weights for the mean would be 0 / 0
            theirs, kept = moving.update(state.params, kept)
            assert_same(chosen(state), theirs, atol=1e-6)


def test_what_is_trained_does_not_change(tiny, tmp_path):
    method = sft_method(tiny, EXAMPLES, LONG)
    plain, other = (
        states_of(each, LONG, tmp_path / name)
        for name, each in (("plain", method), ("averaged", averaged(method, 0.9)))
    )
    for one, two in zip(plain, other, strict=True):
        assert_same(one.params, two.params, atol=1e-6)
    assert averaged(method, 0.0) is method


def test_it_stands_beside_a_reference_that_follows(tiny, tmp_path):
    preference = PreferenceConfig(sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=2)
    method = preference_method(tiny, tiny, PAIRS, 0.5, preference, CONFIG, tmp_path / "cache")
    states = states_of(averaged(method, 1.0), CONFIG, tmp_path)
    assert_same(states[3].kept["reference"], states[3].params)
    mean = {name: np.mean([s.params[name] for s in states], axis=0) for name in states[0].params}
    assert_same(chosen(states[3]), mean, atol=1e-6)


def first_of(params):
    return float(np.ravel(next(iter(params.values())))[0])


def test_models_evaluations_and_certificates_are_of_the_average(tiny, tmp_path):
    method = replace(
        sft_method(tiny, EXAMPLES, LONG),
        evaluate=lambda state, _: ({"eval_first": first_of(state.params)}, []),
        certify=lambda state: {"first": first_of(state.params)},
    )
    saved = {}

    def save(params, folder, manifest):
        saved[folder.name] = {name: np.array(value) for name, value in params.items()}, manifest
        folder.mkdir(exist_ok=True)
        (folder / manifests.NAME).write_text("{}")

    def run(out, config, stop_after=None):
        out.mkdir(exist_ok=True)
        for step, state, evaluated in fit(averaged(method, 0.9), config, RunConfig(save_steps=1), out):
            if step == stop_after:
                return state, evaluated
        return state, evaluated

    config = replace(LONG, ema_decay=0.9)
    (expected, told), out = run(tmp_path / "straight", config), tmp_path / "out"
    run(out, config, stop_after=3)  # the command goes on from there
    runs.run_training(method, save, config, RunConfig(save_only_model=True), out, {"method": "sft"}, {}, BEST)
    params, manifest = saved["out"]
    assert_same(params, jax.device_get(chosen(expected)), atol=1e-7)
    assert not np.allclose(params["embed.embedding"], expected.params["embed.embedding"], atol=1e-5)
    assert manifest["certificate"] == {"first": first_of(params)} != {"first": first_of(expected.params)}
    assert manifest["evaluation"]["eval_first"] == told["eval_first"] == first_of(params)
    assert manifest["train_config"]["ema_decay"] == 0.9


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_other_decays_are_refused(decay):
    with pytest.raises(ValueError, match=r"^ema_decay: expected a number from 0 to 1, got"):
        replace(CONFIG, ema_decay=decay)
