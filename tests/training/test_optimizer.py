"""The optimizer's settings: torch's AdamW, transformers' warm-up."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dera_jax.commands import sft
from dera_jax.training.config import TrainConfig
from dera_jax.training.optimization import make_optimizer, warmup_updates

CONFIG = TrainConfig(max_steps=6, warmup_ratio=0.0, lr_scheduler_type="constant", learning_rate=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adam_beta1": 0.5, "adam_beta2": 0.9},
        {"adam_beta1": 0.0, "adam_epsilon": 0.1, "weight_decay": 0.2},
    ],
)
def test_steps_are_those_of_torch(settings):
    torch = pytest.importorskip("torch")
    config = replace(CONFIG, max_grad_norm=1e9, **settings)
    numbers = np.random.default_rng(0)
    start, gradients = numbers.normal(size=5), numbers.normal(size=(6, 5))
    theirs = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    torch_adamw = torch.optim.AdamW(
        [theirs],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    optimizer, _ = make_optimizer(config)
    ours = jnp.float32(start)
    state = optimizer.init(ours)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient, dtype=torch.float32)
        torch_adamw.step()
        changes, state = optimizer.update(jnp.float32(gradient), state, ours)
        ours = optax.apply_updates(ours, changes)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 0.05, 0.34, 0.999])
def test_warmup_steps_are_counted_as_transformers_does(steps, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    theirs = transformers.TrainingArguments(output_dir=str(tmp_path), warmup_steps=steps, use_cpu=True)
    config = TrainConfig(max_steps=30, warmup_steps=steps)
    assert warmup_updates(config) == theirs.get_warmup_steps(30)
    assert warmup_updates(TrainConfig(max_steps=30, warmup_steps=0, warmup_ratio=0.34)) == 11


def test_the_rate_rises_for_so_many_steps_of_several_updates():
    config = replace(CONFIG, max_steps=10, warmup_steps=3)
    _, schedule = make_optimizer(config, updates=4)
    rates = [float(schedule(n)) for n in range(16)]
    assert all(np.diff(rates[:13]) > 0) and rates[11] < config.learning_rate
    assert rates[12:] == pytest.approx([config.learning_rate] * 4)


def test_parameters_may_learn_at_rates_of_their_own():
    """The factor of a name's beginning multiplies the change, whatever the gradients are."""
    config = replace(CONFIG, max_grad_norm=1e9, weight_decay=0.0)
    params = {"policy.a": jnp.ones(3), "value.a": jnp.ones(3)}
    gradients = {name: jnp.float32([1.0, -2.0, 0.5]) for name in params}
    optimizer, _ = make_optimizer(config, rates={"value.": 10.0})
    changes, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(changes["value.a"], 10 * changes["policy.a"], rtol=1e-6)
    plain, _ = make_optimizer(config)
    expected, _ = plain.update(gradients, plain.init(params), params)
    np.testing.assert_array_equal(changes["policy.a"], expected["policy.a"])


def test_settings_that_cannot_be(refused, tmp_path):
    words = ["--model=gone", "--data=gone.txt", f"--out={tmp_path / 'out'}"]
    for given, said in [
        ("--adam-beta1=1", "--adam-beta1: expected a number in [0, 1), got 1"),
        ("--adam-beta2=-0.1", "--adam-beta2: expected a number from 0 to 1"),
        ("--adam-epsilon=-1", "--adam-epsilon: expected a number from 0"),
        ("--warmup-steps=2.5", "--warmup-steps: expected a whole number, or a share below 1, got 2.5"),
        ("--warmup-steps=-1", "--warmup-steps: expected a number from 0"),
    ]:
        assert said in refused(sft.main, *words, given)
