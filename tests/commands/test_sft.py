"""The command train.sft, as a user runs it."""

import numpy as np
import pytest

from dera_jax.commands import sft as sft_command
from dera_jax.training.log import read_metrics
from tests.support.json_files import manifest


@pytest.mark.slow
def test_sft_learns_text_from_scratch(toy, texts, tmp_path, capsys):
    out = tmp_path / "sft"
    arguments = [f"--model={toy}", "--from-scratch", f"--data={texts}", f"--out={out}", "--max-length=64"]
    arguments += ["--batch-size=16", "--learning-rate=0.005", "--eval-share=0.1"]
    assert sft_command.main([*arguments, "--max-steps=40", "--report-to=tensorboard"]) == 0
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[0]["loss"] == pytest.approx(np.log(512), abs=0.5) and lines[-1]["loss"] < 4.5
    assert lines[-1]["eval_loss"] < 5
    assert manifest(out)["method"] == "sft" and manifest(out)["finished"]
    assert any((out / "tensorboard").iterdir())
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["40"]
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == 318_160
    weights = (out / "model.safetensors").read_bytes()
    assert (out / "best" / "model.safetensors").read_bytes() == weights  # the last was the best
    # The same command has nothing left to do; another one is told what differs.
    assert sft_command.main([*arguments, "--max-steps=40"]) == 0
    assert "already trained" in capsys.readouterr().out
    assert sft_command.main([*arguments, "--max-steps=1", "--weight-decay=0.1"]) == 2
    error = capsys.readouterr().err
    assert "train_config.max_steps: 40 there, 1 now; train_config.weight_decay: 0.0 there, 0.1 now" in error
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_folder_that_holds_another_model_is_not_touched(toy, texts, capsys, tmp_path):
    import shutil

    copy = shutil.copytree(toy, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    assert sft_command.main([f"--model={toy}", f"--data={texts}", f"--out={copy}", "--max-steps=1"]) == 2
    assert "already holds a model" in capsys.readouterr().err
