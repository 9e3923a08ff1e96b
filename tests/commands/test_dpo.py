"""The command train.dpo, as a user runs it: a grid of adapters."""

import shutil

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import dpo as dpo_command
from dera_jax.training.log import read_metrics


@pytest.mark.slow
def test_dpo_trains_a_grid_of_adapters(toy, preferences, tmp_path, capsys):
    out, copy = tmp_path / "grid", shutil.copy(preferences, tmp_path / "copy.jsonl")
    words = [
        f"--model={toy}", f"--out={out}", "--lora-r=4", "--learning-rate=0.003", "--max-steps=15",
        "--batch-size=16", "--eval-share=0.2",
    ]  # fmt: skip
    assert dpo_command.main([*words, f"--data={preferences}", "--beta=0.1,0.5"]) == 0
    said = capsys.readouterr().err
    assert "\nbeta=0.1, 1 of 2\n" in said and "\nbeta=0.5, 2 of 2\n" in said
    # The same data from elsewhere; other data are refused before the reference has read them.
    assert dpo_command.main([*words, f"--data={copy}", "--beta=0.1,0.5"]) == 0
    assert capsys.readouterr().out.count("already trained") == 2
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:80]))
    assert dpo_command.main([*words, f"--data={copy}", "--beta=0.1,0.5"]) == 2
    assert "holds a run with other settings (data: " in capsys.readouterr().err.splitlines()[-1]
    for beta in (0.1, 0.5):
        run = out / f"beta={beta}"
        lines = read_metrics(run)
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
        assert lines[-1]["eval_accuracy"] > 0.9
        aligned = load_policy(f"{toy}+{run}")
        assert aligned.beta == beta and aligned.config.adapters[0].rank == 4
    # Less regularization, further away.
    margins = [read_metrics(out / f"beta={beta}")[-1]["margin"] / beta for beta in (0.1, 0.5)]
    assert margins[0] > margins[1]
    assert len(list((out / "cache").iterdir())) == 2
