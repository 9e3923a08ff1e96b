"""The training loop and its methods: laws, and what the loop promises of a stop."""

import json
import os
import signal
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file as load_tensors
from safetensors.numpy import save as save_tensors

from dera_jax import models
from dera_jax.data.batches import make_batch
from dera_jax.data.examples import Example, Pair
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies.adapters import merge_adapters
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import TOY, with_params
from dera_jax.policies.reward_models import fresh_reward_model, with_reward_params
from dera_jax.rewards.model import reward_texts
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import following as following_reference
from dera_jax.training import losses, parameters, runs
from dera_jax.training.config import PreferenceConfig, RunConfig, TrainConfig
from dera_jax.training.log import RunLog, read_metrics
from dera_jax.training.loop import Method, Preempted, fit
from dera_jax.training.optimization import Terms, init_state, make_optimizer, make_update
from dera_jax.training.preferences import _kto_sides, preference_method
from dera_jax.training.reward import reward_method
from dera_jax.training.sft import sft_method
from tests.support.toy import tiny_policy

EXAMPLES = [
    Example((1, 2), tuple(np.random.default_rng(n).integers(0, 3, size=n + 1).tolist()) + (3,))
    for n in range(12)
]
PAIRS = [Pair((1, 2, n % 3), (2,) * (1 + n % 3) + (3,), (0, n % 2, 3)) for n in range(12)]
CONFIG = TrainConfig(learning_rate=0.01, max_steps=4, batch_size=4, warmup_ratio=0.0)
RUN = RunConfig()


def train(method, tmp_path, config=CONFIG, run=RUN, **more):
    """Returns the trained parameters and the metrics of a run."""
    for _, state, _ in fit(method, config, run, tmp_path, **more):
        params = state.params
    return params, read_metrics(tmp_path)


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **tolerance)


@pytest.fixture
def tiny(toy):
    return tiny_policy(toy, 0)


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


def test_training_stops_at_nan_and_names_step_and_tensor(tmp_path):
    def loss(params, given, batch):
        values = params["calm"].sum() + params["wild"] * batch
        return Terms(values, jnp.ones_like(values))

    data = np.float32([1, 1, np.nan, 1, 1])
    method = Method(
        {"calm": jnp.ones(2), "wild": jnp.ones(2)}, loss, lambda _, step: (np.full(2, data[step]), {})
    )
    with pytest.raises(
        ValueError, match=r"stopped at step 2: loss is nan, first in the gradient of wild \(1 of 2"
    ):
        train(method, tmp_path, replace(CONFIG, max_steps=5), RunConfig(save_steps=1))
    assert len(read_metrics(tmp_path)) == 2
    # What was saved is from before.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


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


def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(tiny, tmp_path):
    config, run = replace(CONFIG, max_steps=9), RunConfig(save_steps=2, eval_steps=3)

    def method():
        return sft_method(tiny, EXAMPLES, config, held_out=EXAMPLES[:5], sample=lambda _: [{"text": "a"}])

    straight, _ = train(method(), tmp_path / "straight", config, run)
    out = tmp_path / "stopped"
    for stop in (1, 3, 5, 6, 8):
        for step, _, _ in fit(method(), config, run, out):
            if step == stop:
                break
    params, _ = train(method(), out, config, run)
    assert all(np.array_equal(straight[name], params[name]) for name in params)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert len((out / "speed.jsonl").read_text().splitlines()) == 9


def test_every_step_that_compiles_is_told(tmp_path, monkeypatch):
    """Batches are of several lengths: the first step is not the only one that takes long."""
    rows = (2, 2, 4, 2, 4, 1)

    def loss(params, given, batch):
        return Terms(params["w"] * batch, jnp.ones(len(batch)))

    method = Method({"w": jnp.float32(1)}, loss, lambda _, step: (np.ones(rows[step]), {}))
    told = []
    tell = RunLog.tell_compiling
    monkeypatch.setattr(RunLog, "tell_compiling", lambda log: (told.append(log.sizes()["steps"]), tell(log)))
    list(fit(method, replace(CONFIG, max_steps=len(rows)), RunConfig(save_steps=1), tmp_path))
    assert told == [0, 2, 5]


@pytest.mark.parametrize(
    ("sent", "raised"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_run_after_the_step_with_everything_saved(sent, raised, tiny, tmp_path):
    before = signal.getsignal(sent)
    with pytest.raises(raised, match="saved after step 2"):
        for step, _, _ in fit(sft_method(tiny, EXAMPLES, CONFIG), CONFIG, RunConfig(), tmp_path):
            if step == 1:
                os.kill(os.getpid(), sent)
    assert signal.getsignal(sent) is before
    assert (tmp_path / "checkpoints" / "2").is_dir() and len(read_metrics(tmp_path)) == 2


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path, capsys):
    config, run = replace(CONFIG, max_steps=6), RunConfig(save_steps=2)
    straight, _ = train(sft_method(tiny, EXAMPLES, config), tmp_path / "straight", config, run)
    out = tmp_path / "damaged"
    for step, _, _ in fit(sft_method(tiny, EXAMPLES, config), config, run, out):
        if step == 5:
            break
    largest = max(
        (out / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    params, metrics = train(sft_method(tiny, EXAMPLES, config), out, config, run)
    assert "damaged" in (said := capsys.readouterr().err) and "going on from step 2" in said
    assert all(np.array_equal(straight[name], params[name]) for name in params)
    assert [m["step"] for m in metrics] == list(range(6))


def test_one_run_at_a_time(tmp_path):
    refused = pytest.raises(
        ValueError, match=rf"^another run is writing to {tmp_path / 'out'}( \(process \d+\))?$"
    )
    with runs.alone(tmp_path / "out"), refused, runs.alone(tmp_path / "out"):
        pass
    with runs.alone(tmp_path / "out"):
        pass


def test_what_another_run_is_told_of_one_that_is_there(tmp_path):
    def settings(method="dpo", data="a", hash_="1", beta=0.1, **more):
        start = {"model": data, "fingerprint": more.pop("fingerprint", "f")}
        return {"method": method, "start": start, "data": data, "examples_hash": hash_, "beta": beta} | more

    def ask(there, now, *given):
        told = there | {"train_config": asdict(CONFIG), "finished": True}
        (tmp_path / "manifest.json").write_text(json.dumps(told))
        (tmp_path / "model.safetensors").touch()
        return runs.is_finished(tmp_path, now, CONFIG, given)

    assert ask(settings(), settings(data="elsewhere"))
    old = settings()
    del old["examples_hash"]
    assert ask(old, settings())
    with pytest.raises(ValueError, match=r"another method \(\"dpo\" there, \"sft\" now\); choose"):
        ask(settings(), settings("sft", beta=0.2))
    with pytest.raises(
        ValueError, match=r"other settings \(beta: 0.1 there, 0.2 now; a: nothing there, 1 now\)"
    ):
        ask(settings(), settings(beta=0.2, a=1), "beta")
    with pytest.raises(ValueError, match=r"settings \(start\.model: "):
        ask(settings(fingerprint="random-0"), settings(data="b", fingerprint="random-0"))


def test_the_step_that_compiles_is_not_in_the_rate(tmp_path):
    with RunLog(tmp_path, 9) as log:
        log.write(0, {}, 60.0, {"loss": 1.0})
        shown = log._bar.format_dict
        assert (shown["n"], shown["initial"], log._bar.last_print_n) == (1, 1, 1) and shown["elapsed"] < 0.5
        log.write(1, {}, 1.0, {"loss": 1.0})
        assert log._bar.n == 2


def test_policies_share_what_is_not_trained(tiny):
    start, frozen = parameters.split(tiny.params)
    assert (
        not frozen
        and with_params(tiny, parameters.whole(tiny.config, start, frozen)).params.keys()
        == tiny.params.keys()
    )
