"""Training on preferences: what is learned, and a reference that stays, follows or is read once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file as load_tensors
from safetensors.numpy import save as save_tensors

from dera_jax import models
from dera_jax.data.batches import make_batch
from dera_jax.data.examples import Example
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies.adapters import merge_adapters
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import TOY
from dera_jax.policies.reward_models import fresh_reward_model, with_reward_params
from dera_jax.rewards.model import reward_texts
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import following as following_reference
from dera_jax.training import parameters
from dera_jax.training.config import PreferenceConfig, RunConfig
from dera_jax.training.log import read_metrics
from dera_jax.training.loop import fit
from dera_jax.training.preferences import _kto_sides, preference_method
from dera_jax.training.reward import reward_method
from tests.support.tiny_trainings import CONFIG, PAIRS, RUN, assert_same, train
from tests.support.toy import tiny_policy


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo", "kto"])
def test_preferences_are_learned(loss, tiny, tmp_path):
    data = PAIRS
    if loss == "kto":
        data = [
            Example(p.prompt, c, good) for p in PAIRS for c, good in ((p.chosen, True), (p.rejected, False))
        ]
    config = replace(CONFIG, max_steps=20, batch_size=12)
    method = preference_method(
        tiny, tiny, data, 0.5, PreferenceConfig(loss=loss), config, tmp_path / "cache", held_out=data
    )
    _, metrics = train(method, tmp_path, config)
    assert metrics[-1]["loss"] < 0.9 * metrics[0]["loss"]
    if loss == "sigmoid":
        assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
        assert metrics[-1]["eval_accuracy"] == 1


def test_kto_takes_another_prompts_completion():
    """Of pairs the next example may be the other answer to the same prompt."""
    examples = [Example((p,), (p, n)) for p, n in ((1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (1, 2))]
    found = [(prompt[0], own, other) for prompt, own, other in _kto_sides(examples, 64)]
    assert found == [
        (1, (1, 0), (2, 0)), (1, (1, 1), (2, 0)), (2, (2, 0), (3, 0)), (3, (3, 0), (1, 2)),
        (3, (3, 1), (1, 2)), (1, (1, 2), (2, 0)),
    ]  # fmt: skip
    assert [other for *_, other in _kto_sides(examples[:2], 64)] == [(1, 1), (1, 0)]


def following(policy, tmp_path, alpha, every):
    preference = PreferenceConfig(
        sync_ref_model=True, ref_model_mixup_alpha=alpha, ref_model_sync_steps=every
    )
    return preference_method(policy, policy, PAIRS, 0.5, preference, CONFIG, tmp_path / "cache")


def test_a_reference_that_follows_by_nothing_stays(tiny, tmp_path):
    """TR-DPO with α = 0 is DPO."""
    plain = preference_method(tiny, tiny, PAIRS, 0.5, PreferenceConfig(), CONFIG, tmp_path / "cache")
    (one, told), (other, of_other) = (
        train(plain, tmp_path / "a"), train(following(tiny, tmp_path, 0.0, 1), tmp_path / "b")
    )  # fmt: skip
    # Adam divides by gradients that may be near 0.
    assert_same(one, other, atol=1e-3)
    assert [m["loss"] for m in told] == pytest.approx([m["loss"] for m in of_other], abs=1e-5)


def test_a_hard_update_makes_the_policy_the_reference(tiny, tmp_path):
    method = following(tiny, tmp_path, 1.0, 2)
    states = [jax.device_get(state) for _, state, _ in fit(method, CONFIG, RunConfig(), tmp_path)]
    assert_same(states[0].kept["reference"], parameters.split(tiny.params)[0])
    assert_same(states[1].kept["reference"], states[1].params)
    assert_same(states[2].kept["reference"], states[1].params)
    # A reference that is the policy: the loss is log 2 again.
    assert read_metrics(tmp_path)[2]["loss"] == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("on", ["its base", "itself"])
def test_a_reference_follows_adapters_as_it_follows_their_weights(alpha, on, tiny, tmp_path):
    """The reference is mixed of the merged weights, and read by a model without adapters."""
    policy = with_lora(tiny_policy(TOY / "reference", 0, 512), 2, 4.0, ["q_proj", "v_proj", "down_proj"])
    if on == "itself":  # adapters that were trained before
        params = flatten(policy.params)
        params |= {p: 0.1 * jnp.ones_like(a) for p, a in params.items() if p.endswith("lora_b")}
        policy = replace(policy, params=unflatten(params))
        reference = policy
    else:
        base = {p: a for p, a in flatten(policy.params).items() if not p.endswith(models.ADAPTER)}
        config = replace(policy.config, adapters=())
        reference = replace(policy, params=unflatten(base), config=config)
    preference = PreferenceConfig(sync_ref_model=True, ref_model_mixup_alpha=alpha, ref_model_sync_steps=2)
    method = preference_method(policy, reference, PAIRS, 0.5, preference, CONFIG, tmp_path / "cache")
    _, frozen = parameters.split(policy.params)
    config, expected = merge_adapters(reference.config, reference.params)
    expected = flatten(expected)
    for step, state, _ in fit(method, replace(CONFIG, max_steps=5), RUN, tmp_path / "run"):
        if step % 2 == 0:
            _, now = merge_adapters(policy.config, parameters.whole(policy.config, state.params, frozen))
            expected = {p: (1 - alpha) * expected[p] + alpha * a for p, a in flatten(now).items()}
        bare, ours = following_reference.read(policy.config, state.kept["reference"], frozen)
        _, ours = merge_adapters(bare, ours)
        assert_same(flatten(ours), expected, atol=1e-6)
        batch, _ = method.batches(None, step)
        both = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch.both)
        logprobs = (
            completion_logprobs(config, unflatten(expected), both),
            completion_logprobs(policy.config, parameters.whole(policy.config, state.params, frozen), both),
        )
        of_reference, of_policy = (np.asarray(each).sum(axis=1).reshape(-1, 2) for each in logprobs)
        chosen, rejected = (of_policy - of_reference).T
        terms = method.loss(state.params, method.constants | state.kept, batch)
        np.testing.assert_allclose(
            terms.values, -np.log(1 / (1 + np.exp(-0.5 * (chosen - rejected)))), atol=1e-5
        )
    changed = [
        p for p in expected if np.any(np.asarray(expected[p]) != np.asarray(flatten(reference.params)[p]))
    ]
    assert len(changed) >= 6


def test_another_model_cannot_follow(tiny, tmp_path):
    policy, other = with_lora(tiny, 2, 4.0), tiny_policy(TOY / "reference", 1)
    preference = PreferenceConfig(sync_ref_model=True)
    with pytest.raises(ValueError, match="or what its adapters stand on, found tiny-1"):
        preference_method(policy, other, PAIRS, 0.5, preference, CONFIG, tmp_path)


def test_log_probabilities_of_the_reference_are_computed_once(tiny, tmp_path, monkeypatch):
    from dera_jax.training import reference_logprobs as module

    arguments = (tiny, tiny, PAIRS, 0.5, PreferenceConfig(), CONFIG, tmp_path)
    first = preference_method(*arguments).batches(None, 0)[0].reference
    expected = [
        [
            float(completion_logprobs(tiny.config, tiny.params, make_batch([p.prompt], [c])).sum())
            for c in (p.chosen, p.rejected)
        ]
        for p in PAIRS
    ]
    assert all(np.abs(np.array(expected) - row).sum(axis=1).min() < 1e-4 for row in first)
    monkeypatch.setattr(module, "_compute", None)
    assert np.array_equal(preference_method(*arguments).batches(None, 0)[0].reference, first)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    kept = load_tensors(path)["logprobs"]
    for damaged in (
        whole[:40],
        save_tensors({"other": kept}),
        save_tensors({"logprobs": kept[1:]}),
        save_tensors({"logprobs": np.where(kept == kept.max(), np.float32(np.nan), kept)}),
        save_tensors({"logprobs": kept.astype(np.float64)}),
    ):
        path.write_bytes(damaged)
        with pytest.raises(TypeError):  # not what was written: asked for again
            preference_method(*arguments)


def test_a_reward_model_learns_preferences(tiny, tmp_path):
    reward = fresh_reward_model(tiny, seed=0)
    config = replace(CONFIG, max_steps=30, batch_size=12)
    params, metrics = train(reward_method(reward, PAIRS, config, held_out=PAIRS), tmp_path, config)
    assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=0.2) and metrics[-1]["eval_accuracy"] == 1
    learned = with_reward_params(reward, parameters.whole(reward.config, params, {}))
    chosen, rejected = (
        reward_texts(learned, [p.prompt + side for p, side in zip(PAIRS, sides, strict=True)])
        for sides in ([p.chosen for p in PAIRS], [p.rejected for p in PAIRS])
    )
    assert np.all(chosen > rejected)
