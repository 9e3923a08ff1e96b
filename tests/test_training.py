"""Training: losses against their equations, the policy gradient against the exact one, real runs."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policy, losses
from dera_jax.batches import make_batch, shuffled
from dera_jax.commands import rlhf as rlhf_command
from dera_jax.commands import sft as sft_command
from dera_jax.configs import DecodeConfig, TrainConfig
from dera_jax.data import Record
from dera_jax.encoding import EncodedPrompt
from dera_jax.generate import Cell, complete
from dera_jax.prompts import Prompt
from dera_jax.rewards import Reward
from dera_jax.rlhf import train_policy_gradient
from dera_jax.score import completion_logprobs
from dera_jax.sft import encode_examples
from dera_jax.training import fit
from tests.toy import all_completions, tiny_policy

PROMPT = (1, 2, 0, 2)


def test_sft_loss_is_torch_cross_entropy(pair):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    policy = pair[0]
    prompts, completions = [[1, 403, 407], [1, 403]], [[261, 378, 267], [268, 1]]
    batch = make_batch(prompts, completions)
    ours = losses.sft_loss(
        completion_logprobs(policy.config, policy.params, batch), jnp.asarray(batch.completion_mask)
    )
    model = AutoModelForCausalLM.from_pretrained(policy.folder)
    nll = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum"))
    assert float(ours) == pytest.approx(float(sum(nll).detach()) / 5, abs=1e-5)


def test_leave_one_out_leaves_one_out():
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    expected = [[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in rewards]
    np.testing.assert_allclose(losses.leave_one_out(rewards), expected)


def test_policy_gradient_is_unbiased(stories):
    """The mean over rollouts is the exact gradient of E[R] − β KL (Eq. 1), by enumeration."""
    policy, reference = tiny_policy(stories, 0), tiny_policy(stories, 1)
    beta, longest, samples = 0.3, 2, 4
    completions = all_completions(4, longest)
    batch = make_batch([PROMPT] * len(completions), completions)
    gains = {c: float(len(c) == 2) - 0.5 * c.count(2) for c in completions}
    of_reference = completion_logprobs(reference.config, reference.params, batch).sum(1)

    def objective(kernel):
        params = policy.params | {"head": {"kernel": kernel}}
        logprobs = completion_logprobs(policy.config, params, batch).sum(1)
        gain = jnp.array([gains[c] for c in completions]) - beta * (logprobs - of_reference)
        return jnp.sum(jnp.exp(logprobs) * gain)

    exact = jax.grad(objective)(policy.params["head"]["kernel"])

    @jax.jit
    def estimate(kernel, batch, advantages):
        def loss(kernel):
            logprobs = completion_logprobs(policy.config, policy.params | {"head": {"kernel": kernel}}, batch)
            return losses.policy_gradient_loss(logprobs.sum(1), advantages)

        return -jax.grad(loss)(kernel)

    prompt = EncodedPrompt(Prompt(0, "x"), (PROMPT,))
    cells = [Cell(prompt, sample, ()) for sample in range(4000)]
    drawn = list(complete((policy,), cells, DecodeConfig(max_new_tokens=longest), 500))
    found = []
    for start in range(0, len(drawn), 200):
        part = drawn[start : start + 200]
        tokens = make_batch([PROMPT] * 200, [c.tokens for c in part])
        log_ratio = np.array([c.logprobs.sum() for c in part]) - np.asarray(
            completion_logprobs(reference.config, reference.params, tokens).sum(1)
        )
        penalized = np.array([gains[tuple(c.tokens)] for c in part]) - beta * log_ratio
        advantages = losses.leave_one_out(penalized.reshape(-1, samples)).ravel()
        advantages = jnp.asarray(advantages, jnp.float32)
        found.append(np.asarray(estimate(policy.params["head"]["kernel"], tokens, advantages)))
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
    distance = np.abs(mean - exact) / np.maximum(error, 1e-6)
    print(f"largest distance {distance.max():.2f} standard errors over {distance.size} parameters")
    assert distance.max() < 5 and np.sqrt(np.mean(distance**2)) < 1.6
    assert np.abs(exact).max() > 5 * error.max()


def test_policy_gradient_approaches_the_closed_form(stories, tmp_path):
    """Eq. 2 on a pair that can be listed: KL to π* ∝ π_ref exp(R/β) falls by far."""
    reference = tiny_policy(stories, 2, scale=1.5)
    completions = all_completions(4, 2)
    batch = make_batch([PROMPT] * len(completions), completions)
    gains = np.array([1.0 if 2 in c else 0.0 for c in completions])
    beta = 0.5
    of_reference = np.asarray(completion_logprobs(reference.config, reference.params, batch).sum(1), float)
    optimum = of_reference + gains / beta
    optimum -= np.log(np.exp(optimum).sum())
    reward = Reward("has-2", lambda c: [1.0 if 2 in tokens else 0.0 for tokens in c.tokens])
    prompt = EncodedPrompt(Prompt(0, "x"), (PROMPT,))
    config = TrainConfig(learning_rate=0.01, max_steps=60, batch_size=256)
    decode = DecodeConfig(max_new_tokens=2)
    steps = train_policy_gradient(
        reference, reference, [prompt], [reward], beta, 256, decode, config, tmp_path
    )
    divergences = []
    for _, params in steps:
        logprobs = np.asarray(completion_logprobs(reference.config, params, batch).sum(1), float)
        divergences.append(float(np.sum(np.exp(logprobs) * (logprobs - optimum))))
    before = float(np.sum(np.exp(of_reference) * (of_reference - optimum)))
    print(f"KL(π ‖ π*): {before:.4f} before, {divergences[-1]:.5f} after")
    assert divergences[-1] < 0.03 * before


def test_training_stops_at_nan_and_says_where(tmp_path):
    def loss(params, batch):
        return params["w"].sum() * batch, {}

    config = TrainConfig(max_steps=5, batch_size=1)
    values = jnp.float32([1, 1, np.nan, 1, 1])
    steps = fit({"w": jnp.ones(2)}, config, loss, lambda _, step: (values[step], {}), tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="stopped at step 2: loss is nan"):
        list(steps)
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 2


def test_every_example_is_seen_once_an_epoch():
    order = shuffled(10, 4, seed=3)
    seen = np.concatenate([order(step) for step in range(10)])
    for epoch in range(4):
        assert sorted(seen[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:20])


def test_examples_end_with_eos_and_learn_only_the_completion(pair):
    records = [
        Record({"prompt": "Once upon a time", "completion": ", there was a cat."}, "f:1", 0),
        Record({"text": "One day"}, "f:2", 1),
    ]
    (first, second), cut = encode_examples(pair[0], records, 64)
    tokenizer = pair[0].tokenizer
    assert first.prompt + first.completion == [*tokenizer("Once upon a time, there was a cat.").input_ids, 1]
    assert second.prompt == [1] and second.completion[-1] == 1 and cut == 0
    assert encode_examples(pair[0], records, 8)[1] == 1
    with pytest.raises(ValueError, match="f:9: expected text"):
        encode_examples(pair[0], [Record({"question": "?"}, "f:9", 0)], 64)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    from tests.conftest import SHARED

    lines = (SHARED / "data/tinystories/tiny_stories_head.txt").read_text().split("\n")
    path = tmp_path_factory.mktemp("data") / "stories.txt"
    path.write_text("\n".join(line for line in lines if 80 < len(line) < 200)[:20_000])
    return path


def test_sft_command_learns_real_text_from_scratch(stories, texts, tmp_path, capsys):
    out = tmp_path / "sft"
    arguments = [f"--model={stories}", "--from-scratch", f"--data={texts}", f"--out={out}", "--max-length=64"]
    assert sft_command.main([*arguments, "--max-steps=40", "--batch-size=16", "--learning-rate=0.005"]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[0]["loss"] == pytest.approx(np.log(512), abs=0.5) and lines[-1]["loss"] < 4.5
    assert json.loads((out / "manifest.json").read_text())["method"] == "sft"
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == 260_032
    assert sft_command.main([*arguments, "--max-steps=1"]) == 2
    assert "already holds a model" in capsys.readouterr().err


def test_rlhf_command_raises_the_reward_and_keeps_beta(stories, tmp_path):
    data, out = tmp_path / "prompts.jsonl", tmp_path / "aligned"
    openings = [
        "Once upon a time",
        "One day",
        "Lily and Ben",
        "Tom was",
        "The dog",
        "A bird",
        "Mia had",
        "It was",
    ]
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in openings))
    code = rlhf_command.main(
        [f"--model={stories}", f"--data={data}", "--reward=keywords:happy", "--beta=0.02", f"--out={out}",
         "--max-steps=12", "--batch-size=64", "--num-samples=8", "--max-new-tokens=24", "--learning-rate=0.002"]
    )  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = (np.mean([line["reward"] for line in part]) for part in (lines[:4], lines[-4:]))
    print(f"reward {first:.3f} -> {last:.3f}")
    assert last > first + 0.05
    assert abs(lines[0]["kl"]) < 1e-3
    assert load_policy(str(out)).beta == 0.02
