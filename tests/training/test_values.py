"""Value heads against the true values, on a policy whose every completion is listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from dera_jax.data import buckets
from dera_jax.data.batches import make_batch
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.models.value import HEAD
from dera_jax.policies.value_heads import fresh_value_head
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_hidden
from dera_jax.training import losses, parameters
from dera_jax.training.config import RolloutConfig, RunConfig, TrainConfig, ValueTraining
from dera_jax.training.log import read_metrics
from dera_jax.training.loop import fit
from dera_jax.training.optimization import init_state, make_optimizer, make_update
from dera_jax.training.value import Valued, explained_variance, value_method
from tests.support.toy import all_completions, exact_logprobs, tiny_policy

PROMPT, LONGEST = (1, 2, 0, 2), 3
COMPLETIONS = all_completions(4, LONGEST)
BATCH = make_batch([PROMPT] * len(COMPLETIONS), COMPLETIONS)
FIRST = EncodedPrompt(Prompt(0, "x"), (PROMPT,))


def gain(tokens) -> float:
    return float(2 in tokens) - 0.4 * list(tokens).count(1)


REWARD = Reward("has-2-not-1", lambda c: [gain(tokens) for tokens in c.tokens])
GAINS = np.array([gain(completion) for completion in COMPLETIONS])


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "SMALLEST_BUCKET", 4)
        yield


@pytest.fixture(scope="module")
def reference(toy):
    return tiny_policy(toy, 1, scale=1.0)


@pytest.fixture(scope="module")
def chances(reference):
    """π_ref(y | x) of every completion."""
    logprobs = exact_logprobs(reference, PROMPT, COMPLETIONS)
    found = np.array([
        np.exp(sum(each[t, word] for t, word in enumerate(completion)))
        for each, completion in zip(logprobs, COMPLETIONS, strict=True)
    ])  # fmt: skip
    assert found.sum() == pytest.approx(1)
    return found


def mean_rewards(weights):
    """Prefix -> E[R | prefix] where completions are drawn with such weights, by listing what may follow."""
    mass, total = {}, {}
    for completion, weight, reward in zip(COMPLETIONS, weights, GAINS, strict=True):
        for t in range(len(completion)):
            prefix = completion[: t + 1]
            mass[prefix] = mass.get(prefix, 0.0) + weight
            total[prefix] = total.get(prefix, 0.0) + weight * reward
    return {prefix: total[prefix] / mass[prefix] for prefix in mass}


def given(samples):
    return [FIRST], [REWARD], RolloutConfig(DecodeConfig(max_new_tokens=LONGEST), num_samples=samples)


@pytest.mark.parametrize("method", ["fudge", "cd-q"])
def test_both_methods_find_the_mean_reward_of_every_beginning(reference, chances, method):
    """`fudge` that of the completions it sees, `cd-q` that of the reference however often each of them is there."""
    counts = np.maximum(np.round(300 * chances), 1).astype(int)
    rows = np.repeat(np.arange(len(COMPLETIONS)), counts)
    config = TrainConfig(learning_rate=0.1, max_steps=1000, batch_size=len(rows), max_grad_norm=100.0)
    value = fresh_value_head(reference, 0)
    made = value_method(value, reference, *given(len(rows)), ValueTraining(method, 1), config)
    hidden = jax.jit(completion_hidden, static_argnames="config")(reference.config, reference.params, BATCH)
    arrays = hidden, BATCH.completions, BATCH.completion_mask, np.float32(GAINS)
    seen = Valued(*(jnp.asarray(array)[rows] for array in arrays))
    optimizer, _ = make_optimizer(config)
    update, state = make_update(made.loss, optimizer), init_state(made.trained, optimizer, {})
    for _ in range(config.max_steps):
        state, figures = update(state, made.constants, seen)
    params = parameters.whole(value.config, state.params, made.constants["frozen"])
    table = np.asarray(models.bind(value.config, params).logits(hidden), float)
    true = mean_rewards(counts if method == "fudge" else chances)
    places = [(n, t) for n, completion in enumerate(COMPLETIONS) for t in range(len(completion))]
    exact = np.array([true[COMPLETIONS[n][: t + 1]] for n, t in places])
    errors = np.array([table[n, t, COMPLETIONS[n][t]] for n, t in places]) - exact
    print(f"{method}: V is off by at most {np.abs(errors).max():.4f}, its spread is {exact.std():.2f}")
    assert np.abs(errors).max() < 0.05 < exact.std() / 10 and np.abs(errors).mean() < 0.01
    # What is left of the error is the reward's own variance, given the beginning.
    weights = counts[[n for n, _ in places]]
    least = np.average((exact - GAINS[[n for n, _ in places]]) ** 2, weights=weights)
    assert float(figures["error"]) == pytest.approx(least, abs=0.005)


def test_true_values_are_where_both_losses_are_least(reference, chances):
    """Bellman's targets of the true values are these values, and rewards have them as their mean."""
    logprobs = exact_logprobs(reference, PROMPT, COMPLETIONS)
    true_values = mean_rewards(chances)
    values = np.zeros((len(COMPLETIONS), LONGEST, 4))
    logits = np.zeros_like(values)
    for row, completion in enumerate(COMPLETIONS):
        logits[row, : len(completion)] = logprobs[row]
        for t in range(len(completion)):
            values[row, t] = [true_values[(*completion[:t], word)] for word in range(4)]
    mask = np.array([[t < len(completion) for t in range(LONGEST)] for completion in COMPLETIONS])
    expected = losses.expected_value(jnp.float32(logits), jnp.float32(values))
    targets = np.asarray(losses.next_value_targets(expected, jnp.float32(GAINS), mask))
    for row, completion in enumerate(COMPLETIONS):
        for t in range(len(completion) - 1):
            assert targets[row, t] == pytest.approx(true_values[completion[: t + 1]], abs=1e-5)
        assert targets[row, len(completion) - 1] == pytest.approx(GAINS[row])


def test_the_reference_is_frozen_and_a_run_goes_on_to_the_bit(reference, tmp_path):
    value = fresh_value_head(reference, 0)

    def run(out, steps):
        config = TrainConfig(learning_rate=0.01, max_steps=steps, batch_size=16, lr_scheduler_type="constant",
                             warmup_ratio=0.0)  # fmt: skip
        made = value_method(
            value, reference, *given(16), ValueTraining(num_epochs=2), config, held_out=[FIRST]
        )
        assert all(path.startswith(HEAD) for path in made.trained)
        *_, (_, state, _) = fit(made, config, RunConfig(save_steps=1), out)
        return jax.device_get(state.params)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    again = run(tmp_path / "parts", 4)
    assert all(np.array_equal(whole[path], again[path]) for path in whole)
    lines = read_metrics(tmp_path / "parts")
    assert lines[-1] == read_metrics(tmp_path / "whole")[-1] and "kl" not in lines[0]
    last = lines[-1]
    assert last["eval_explained_variance"] <= 1 and last["eval_loss"] == last["eval_error"]


def test_explained_variance():
    assert explained_variance(0.0, 2.0) == 1 and explained_variance(2.0, 2.0) == 0
    assert explained_variance(0.0, 0.0) is None
