"""One update: its loss, its gradients, their types and memory, and which parameters it changes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.data.batches import make_batch
from dera_jax.data.examples import Example
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import with_params
from dera_jax.training import losses, parameters
from dera_jax.training.optimization import init_state, make_optimizer, make_update
from dera_jax.training.sft import sft_method
from tests.support.tiny_trainings import CONFIG, EXAMPLES, assert_same, train


def test_sft_loss_is_torch_cross_entropy(pair):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    policy = pair[0]
    prompts, completions = [[1, 403, 407], [1, 403]], [[261, 378, 267], [268, 1]]
    batch = make_batch(prompts, completions)
    method = sft_method(
        policy, [Example(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)], CONFIG
    )
    terms = method.loss(method.trained, method.constants, batch)
    model = AutoModelForCausalLM.from_pretrained(policy.folder)
    nll = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum"))
    ours = losses.mean_over(terms.values, terms.weights)
    assert float(ours) == pytest.approx(float(sum(nll).detach()) / 5, abs=1e-5)


def test_leave_one_out_leaves_one_out():
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    expected = [[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in rewards]
    np.testing.assert_allclose(losses.leave_one_out(rewards), expected)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts, tiny, tmp_path):
    """Also where the parts have different numbers of tokens, which a mean of means would get wrong."""
    config = replace(CONFIG, gradient_accumulation_steps=parts)
    whole, metrics = train(sft_method(tiny, EXAMPLES, CONFIG), tmp_path / "whole")
    split, of_parts = train(sft_method(tiny, EXAMPLES, config), tmp_path / "parts", config)
    assert_same(whole, split, atol=2e-5)
    assert [m["loss"] for m in metrics] == pytest.approx([m["loss"] for m in of_parts], rel=1e-5)


def test_recomputed_activations_change_nothing_but_memory(pair):
    policy = pair[0]
    again = replace(policy, config=replace(policy.config, remat=True))
    examples = [Example((1, 403, 407), tuple(range(64, 96)))] * 4
    gradients, kept = [], []
    for one in (policy, again):
        method = sft_method(one, examples, CONFIG)
        batch, _ = method.batches(None, 0)

        def loss(params, method=method, batch=batch):
            terms = method.loss(params, method.constants, batch)
            return losses.mean_over(terms.values, terms.weights)

        _, backward = jax.vjp(jax.jit(loss), method.trained)
        gradients.append(backward(jnp.float32(1.0))[0])
        kept.append(sum(a.nbytes for a in jax.tree.leaves(backward)))
    assert_same(*gradients, atol=1e-5)
    print(f"kept for the gradients: {kept[0] / 2**20:.1f} MiB, computing again {kept[1] / 2**20:.1f} MiB")
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.slow
def test_masters_stay_float32_where_bfloat16_computes(tiny, tmp_path):
    half = replace(tiny, config=replace(tiny.config, dtype="bfloat16"))
    method = sft_method(half, EXAMPLES, CONFIG)
    # Steps so small that bfloat16 parameters would not move.
    config = replace(CONFIG, learning_rate=1e-5)
    params, metrics = train(method, tmp_path, config)
    assert {str(a.dtype) for a in params.values()} == {"float32"}
    assert {str(a.dtype) for a in jax.tree.leaves(parameters.whole(half.config, params, {}))} == {"bfloat16"}
    assert all(np.any(np.asarray(params[n]) != np.asarray(method.trained[n])) for n in params)
    exact = train(sft_method(tiny, EXAMPLES, config), tmp_path / "exact", config)[1]
    assert metrics[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)


def test_a_step_is_compiled_once(tiny):
    method = sft_method(tiny, EXAMPLES, CONFIG)
    optimizer, _ = make_optimizer(CONFIG)
    update = make_update(method.loss, optimizer)
    state = init_state(method.trained, optimizer, {})
    for step in range(6):
        state, _ = update(state, method.constants, method.batches(state, step % 3)[0])
    assert update._cache_size() <= 2  # buckets of 16 at most, and the first state's weak types


def test_only_adapters_are_trained(tiny, tmp_path, toy):
    from dera_jax import load_policy

    policy = with_lora(load_policy(str(toy)), 2, 4.0, ["q_proj", "v_proj"])
    examples = [Example((1, 403), (261, 378, 267)), Example((1, 403, 407), (268, 1))]
    config = replace(CONFIG, batch_size=2)
    method = sft_method(policy, examples, config)
    params, metrics = train(method, tmp_path, config)
    assert set(params) == {n for n in params if n.endswith(("lora_a", "lora_b"))} and len(params) == 16
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert sum(a.size for a in params.values()) < 0.05 * 318_160


def test_policies_share_what_is_not_trained(tiny):
    start, frozen = parameters.split(tiny.params)
    assert (
        not frozen
        and with_params(tiny, parameters.whole(tiny.config, start, frozen)).params.keys()
        == tiny.params.keys()
    )
