"""Twenty steps of whole trainings, against TRL's: the optimizer, what decays, the loss and the data together."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from dera_jax.commands import dpo, sft

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

PROMPTS = ["Mira visits", "Ida is", "The tailor of", "Where is"]
PAIRS = [
    {"prompt": prompt, "chosen": f" {chosen}.", "rejected": f" {rejected}."}
    for prompt, chosen, rejected in zip(
        PROMPTS, ["Ida", "a tailor in Orsa", "Orsa sat", "Mira"], ["a a", "no", "Ida is", "the"], strict=True
    )
]
COMPLETED = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
STEPS, RATE, DECAY = 20, 3e-3, 2.0


def trained_by_trl(kind, toy, rows, folder, **settings):
    """Returns the parameters after `STEPS` steps on all rows at once."""
    torch.manual_seed(0)
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), per_device_train_batch_size=len(rows), max_steps=STEPS, learning_rate=RATE,
        weight_decay=DECAY, lr_scheduler_type="constant", warmup_steps=0, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(toy),
    )
    trainer.train()
    return {name: value.detach().numpy() for name, value in trainer.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["DPO", "SFT"])
def test_twenty_steps_are_those_of_trl(kind, toy, call, tmp_path):
    """Of all parameters, and of the mean |w| of norms, which do not decay, and of matrices, which do."""
    rows, command = (PAIRS, dpo.main) if kind == "DPO" else (COMPLETED, sft.main)
    more = {"beta": 0.1} if kind == "DPO" else {}
    theirs = trained_by_trl(kind, toy, rows, tmp_path / "theirs", **more)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"--model={toy}", f"--data={tmp_path / 'data.jsonl'}", f"--out={tmp_path / 'ours'}"]
    words += [f"--max-steps={STEPS}", f"--batch-size={len(rows)}", f"--learning-rate={RATE}"]
    words += [f"--weight-decay={DECAY}", "--lr-scheduler-type=constant", "--warmup-ratio=0"]
    code, _, err = call(command, *words)
    assert code == 0, err
    ours, start = load_file(tmp_path / "ours" / "model.safetensors"), load_file(toy / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for norms in (True, False):
        names = [name for name in ours if ("norm" in name) == norms]
        found, expected, before = (
            np.mean([np.abs(each[name]).mean() for name in names]) for each in (ours, theirs, start)
        )
        assert found == pytest.approx(expected, rel=1e-5)
        decayed = before * (1 - RATE * DECAY) ** STEPS
        assert (abs(expected - before) < abs(expected - decayed)) == norms
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=5e-4, err_msg=name)
