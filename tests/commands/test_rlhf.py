"""The command train.rlhf, as a user runs it, also by a reward that train.reward has trained."""

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import reward as reward_command
from dera_jax.commands import rlhf as rlhf_command
from dera_jax.policies.reward_models import load_reward_model
from dera_jax.rewards.model import reward_texts
from dera_jax.training.log import read_metrics
from tests.support.json_files import manifest


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "pg", "ppo"])
def test_rlhf_raises_the_reward_and_keeps_beta(algorithm, toy, openings, tmp_path, capsys):
    out = tmp_path / "aligned"
    rate = 0.001 if algorithm == "ppo" else 0.002
    code = rlhf_command.main(
        [f"--model={toy}", f"--data={openings}", "--reward=keywords:happy", "--beta=0.02", f"--out={out}",
         "--max-steps=12", "--batch-size=64", "--num-samples=8", "--max-new-tokens=24",
         f"--learning-rate={rate}", f"--algorithm={algorithm}", *(["--vf-coef=1"] * (algorithm == "ppo"))]
    )  # fmt: skip
    assert code == 0
    lines = read_metrics(out)
    first, last = (np.mean([line["reward"] for line in part]) for part in (lines[:4], lines[-4:]))
    print(f"{algorithm}: reward {first:.3f} -> {last:.3f}")
    assert last > first + 0.05
    assert abs(lines[0]["kl"]) < 1e-3
    certificate = manifest(out)["certificate"]
    assert (
        f"KL to the optimum of β = 0.02: {certificate['distance']['mean']:.2f} nats"
        in capsys.readouterr().out
    )
    assert certificate["largest_reward"] == 1.0 and 0 < certificate["effective_share"] <= 1
    assert load_policy(str(out)).beta == 0.02 and manifest(out)["method"] == algorithm
    assert 0 < lines[0]["entropy"] < np.log(512)


@pytest.mark.slow
def test_a_reward_model_is_trained_and_serves_as_a_reward(toy, preferences, openings, tmp_path):
    out = tmp_path / "judge"
    arguments = [f"--model={toy}", f"--data={preferences}", f"--out={out}", "--eval-share=0.2"]
    assert (
        reward_command.main([*arguments, "--max-steps=15", "--batch-size=16", "--learning-rate=0.001"]) == 0
    )
    assert read_metrics(out)[-1]["eval_accuracy"] > 0.9
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(out)
    ours = load_reward_model(str(out))
    texts = [[1, 403, 407, 261], [1, 403, 378, 267, 2]]
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits.item() for ids in texts]
    np.testing.assert_allclose(reward_texts(ours, texts), expected, atol=2e-5)
    arguments = [f"--model={toy}", f"--data={openings}", f"--reward=model:{out}", "--max-steps=2"]
    assert (
        rlhf_command.main([*arguments, f"--out={tmp_path / 'p'}", "--batch-size=16", "--max-new-tokens=8"])
        == 0
    )
