"""Reward models as adapters: trained by the command, read by PEFT and as a reward, to the same scores."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import reward as reward_command
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import TOY
from dera_jax.policies.reward_models import OWN, fresh_reward_model, load_reward_model, save_reward_adapter
from dera_jax.rewards.model import reward_texts
from tests.support.shapes import FAMILIES, SHAPES
from tests.support.torch_models import random_model, save
from tests.support.torch_rewards import T5, TEXTS, randomize

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from transformers import AutoModelForSequenceClassification, T5Config, T5ForConditionalGeneration  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


def trained_reward(base, targets="all-linear"):
    """Returns a reward model with adapters and a head that were changed at random."""
    reward = fresh_reward_model(with_lora(load_policy(str(base)), 3, 6.0, targets), 0)
    random, flat = np.random.default_rng(0), flatten(reward.params)
    for path, value in flat.items():
        if path.endswith("lora_b") or path.startswith(OWN):
            flat[path] = jnp.asarray(0.3 * random.standard_normal(value.shape), jnp.float32)
    return replace(reward, params=unflatten(flat))


def scores_by_peft(base, folder, texts):
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=0, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits.item() for ids in texts]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if "," not in name])
def test_peft_reads_what_is_saved(name, toy, tmp_path):
    base = save(random_model(dict(SHAPES[name])), tmp_path / "base", toy)
    reward = trained_reward(base)
    save_reward_adapter(reward, tmp_path / "adapter", str(base), {})
    ours = reward_texts(reward, TEXTS)
    assert np.std(ours) > 0.02
    np.testing.assert_allclose(scores_by_peft(base, tmp_path / "adapter", TEXTS), ours, atol=3e-5)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS" and settings["modules_to_save"] == ["score"]
    again = load_reward_model(f"{base}+{tmp_path / 'adapter'}")
    np.testing.assert_allclose(reward_texts(again, TEXTS), ours, atol=1e-6)


def test_t5_has_its_head_saved_too(toy, tmp_path):
    base = save(randomize(T5ForConditionalGeneration(T5Config(**T5))), tmp_path / "base", toy)
    reward = trained_reward(base)
    save_reward_adapter(reward, tmp_path / "adapter", str(base), {})
    texts = [[*ids, 1] for ids in TEXTS]
    ours = reward_texts(reward, texts)
    np.testing.assert_allclose(scores_by_peft(base, tmp_path / "adapter", texts), ours, atol=3e-5)
    again = load_reward_model(f"{base}+{tmp_path / 'adapter'}")
    np.testing.assert_allclose(reward_texts(again, texts), ours, atol=1e-6)


def test_an_adapter_of_a_language_model_is_no_reward_model(toy, tmp_path):
    from dera_jax.policies.save import save_adapter

    save_adapter(with_lora(load_policy(str(toy)), 2, 4.0), tmp_path / "adapter", str(toy))
    with pytest.raises(
        ValueError, match=r"expected the adapter of a reward model, with a tensor score.weight"
    ):
        load_reward_model(f"{toy}+{tmp_path / 'adapter'}")


@pytest.mark.slow
def test_the_command_trains_adapters_and_the_head(call, tmp_path):
    rows = [
        {"prompt": f"Mira {n}", "chosen": f" visits Ida {n}.", "rejected": f" and he {n} to play."}
        for n in range(32)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, base = tmp_path / "out", TOY / "reference"
    words = [
        f"--model={base}",
        f"--data={tmp_path / 'pairs.jsonl'}",
        f"--out={out}",
        "--lora-r=2",
        "--max-steps=12",
    ]
    words += ["--batch-size=8", "--learning-rate=0.01", "--eval-share=0.3"]
    code, _, err = call(reward_command.main, *words)
    assert code == 0, err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval_accuracy"] == 1 and lines[0]["loss"] == pytest.approx(np.log(2), abs=0.2)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["lora"]["r"] == 2 and set(manifest["files"]) == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    ours = load_reward_model(f"{base}+{out}")
    assert len(ours.config.adapters) > 4
    texts = [[1, 403, 407, 261], [1, 403, 378, 267, 2]]
    np.testing.assert_allclose(scores_by_peft(base, out, texts), reward_texts(ours, texts), atol=2e-5)
    assert "already trained" in call(reward_command.main, *words)[1]
