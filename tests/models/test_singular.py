"""Where formulas divide by nothing: what is returned there is defined, or told in one line."""

import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.analysis.calibration import calibrate
from dera_jax.analysis.tuning.objectives import parse_constraint
from dera_jax.commands import rlhf
from dera_jax.decoding.config import DecodeConfig
from dera_jax.policies.combine import _slerp
from dera_jax.training import losses
from dera_jax.training.config import RolloutConfig, TrainConfig
from dera_jax.training.on_policy import adaptive_beta
from dera_jax.training.policy_gradient import policy_gradient_method
from tests.support.toy import tiny_policy


def slerp_in_float64(first, second, strength):
    first, second = (np.asarray(x, np.float64) for x in (first, second))
    norms = np.linalg.norm(first), np.linalg.norm(second)
    angle = np.arccos(np.clip((first * second).sum() / norms[0] / norms[1], -1, 1))
    return (np.sin((1 - strength) * angle) * first + np.sin(strength * angle) * second) / np.sin(angle)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.5])
def test_slerp_of_opposite_tensors_is_linear(size, strength):
    """Every great circle through one point passes its opposite: none is that of the two."""
    first = np.random.default_rng(size).normal(size=size).astype(np.float32)
    for second in (-first, -2.5 * first):
        found = _slerp(jnp.asarray(first), jnp.asarray(second), strength)
        np.testing.assert_allclose(found, (1 - strength) * first + strength * second, atol=1e-5)
    # Where both are nothing, so is what lies between; where one is, the way to it is straight.
    zero = jnp.zeros(size)
    np.testing.assert_array_equal(_slerp(zero, zero, strength), zero)
    np.testing.assert_allclose(_slerp(zero, jnp.asarray(first), strength), strength * first, rtol=1e-6)
    np.testing.assert_allclose(_slerp(jnp.asarray(first), zero, strength), (1 - strength) * first, rtol=1e-6)


@pytest.mark.parametrize("angle", [1e-3, 0.1, 1.5, 3.0, math.pi - 1e-2])
def test_slerp_near_its_singular_points_is_exact(angle):
    first, second = jnp.array([3.0, 0.0]), 2 * jnp.array([math.cos(angle), math.sin(angle)])
    for strength in (0.0, 0.3, 1.0, 1.2):
        expected = slerp_in_float64(first, second, strength)
        # Coefficients are divided by sin Ω, and an angle is known to 10⁻⁷.
        rounding = 1e-6 * (1 + abs(expected).max()) / math.sin(angle)
        np.testing.assert_allclose(_slerp(first, second, strength), expected, atol=rounding)


def test_margins_of_a_broken_reward_model_are_told():
    for margin in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"expected finite margins, found {margin}"):
            calibrate([0.5, margin])
    one = calibrate([0.0])
    assert (one.accuracy.mean, one.loss, one.error) == (0.5, pytest.approx(math.log(2)), 0.0)


def test_a_step_of_one_completion_has_no_baseline(toy):
    policy = tiny_policy(toy, 0)
    given = policy, policy, [], [], RolloutConfig(DecodeConfig(), 1), TrainConfig(batch_size=1)
    with pytest.raises(ValueError, match="batch_size: a baseline is of other samples: expected at least 2"):
        policy_gradient_method(*given, algorithm="pg")


@pytest.mark.parametrize("kl, target", [(0.0, 1.0), (1e9, 1e-9), (5.0, 5.0)])
def test_an_adaptive_beta_stays_above_zero(kl, target):
    for batch, horizon in ((128, 10_000), (128, 26)):
        assert losses.next_beta(0.1, kl, target, horizon, batch) > 0
    rollout = RolloutConfig(DecodeConfig(), target_kl=target, horizon=25)
    with pytest.raises(
        ValueError, match=r"^horizon: expected more than a fifth of the batch size \(128\), got 25"
    ):
        adaptive_beta(rollout, TrainConfig(batch_size=128))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--algorithm=pg", "--batch-size=1", "--num-samples=1"], "--batch-size=1: --algorithm=pg compares"),
        (
            ["--target-kl=5", "--kl-horizon=5", "--batch-size=32"],
            "--kl-horizon=5: expected more than a fifth",
        ),
    ],
)
def test_commands_tell_them_before_anything_is_loaded(refused, tmp_path, words, told):
    given = ["--model=nowhere", "--data=toy", "--reward=length:1:2", f"--out={tmp_path / 'out'}"]
    assert told in refused(rlhf.main, *given, *words)


def test_whitening_of_equal_values_is_nothing():
    values, mask = jnp.full((2, 3), 4.0), jnp.array([[True, True, False], [True, False, False]])
    np.testing.assert_allclose(losses.whiten(values, mask), 0.0, atol=1e-3)
    np.testing.assert_array_equal(losses.whiten(values, jnp.zeros((2, 3), bool)), 0.0)


def test_bounds_that_float_does_not_hold():
    with pytest.raises(ValueError, match=re.escape("--constraint=kl<=1e999: expected a finite number")):
        parse_constraint("kl<=1e999", [])
