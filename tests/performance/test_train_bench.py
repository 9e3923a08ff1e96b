"""The training bench: its report has what it promises, and its plain script computes what ours does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.commands.bench import main
from dera_jax.data.batches import make_batch
from dera_jax.performance.bench import plain_script, sides, timing, training, training_lines
from dera_jax.policies.save import save_policy
from dera_jax.scoring.logprobs import completion_logprobs
from tests.support import tiny

TINY = tiny.TINY | {"max_position_embeddings": 64, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return sides.random_policies(tmp_path_factory.mktemp("random"), TINY)[0]


@pytest.fixture
def report(policy, tmp_path, monkeypatch, capsys):
    """Runs the command on a tiny model and returns (report, what was printed) of its arguments."""
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(training, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(training, "COMPLETION_TOKENS", 16)
    monkeypatch.setattr(training, "PEAK_WIDTH", 64)
    monkeypatch.setattr(training_lines, "ROWS", {False: 4})
    monkeypatch.setattr(training_lines, "RLHF_ROWS", 8)
    save_policy(policy, tmp_path / "model")
    pair = [f"--reference={tmp_path}/model", f"--aligned={tmp_path}/model", "--shape=none"]

    def run(*arguments):
        out = f"--out={tmp_path}/out.json"
        assert main([*pair, "--train", "--repeats=2", "--new-tokens=16", out, *arguments]) == 0
        return json.loads((tmp_path / "out.json").read_text()), capsys.readouterr()

    return run


@pytest.mark.slow
def test_report(report):
    report, printed = report("--no-torch")
    assert not {"decode", "sweep"} & report.keys() and report["versions"]["trl"] is None
    for section in ("sft", "dpo"):
        (result,) = report[section]
        assert (result["rows"], result["tokens_per_step"]) == (4, 4 * 32)
        assert result["tokens_per_second"].keys() == {"ours"} and "times_torch" not in result
        assert len(result["share_of_peak"]["ours"]["values"]) == 2
        assert result["share_of_peak"]["ours"]["min"] > 0
    (result,) = report["rlhf"]
    assert (result["rows"], result["new_tokens"]) == (8, 16) and result["times_plain"]["min"] > 0
    for side, parts in result["parts"].items():
        assert list(parts) == ["rollout", "reference", "reward", "update"]
        total = sum(np.array(figures["values"]) for figures in parts.values())
        assert total == pytest.approx(result["seconds"][side]["values"], abs=1e-3)
    assert "of the matrix product's peak" in printed.out and "× as fast (target ≥ 2)" in printed.out


@pytest.mark.slow
def test_trl_takes_its_turn(report):
    pytest.importorskip("trl")
    report, printed = report("--sections=sft,dpo")
    assert "rlhf" not in report
    for section in ("sft", "dpo"):
        (result,) = report[section]
        assert result["seconds"].keys() == {"ours", "torch"} and result["times_torch"]["min"] > 0
        assert result["target"] == 1.0 and result["torch_threads"]["chosen"] >= 1
    assert printed.out.count("TRL with") == 2


def test_operations_are_counted(policy):
    attention, feed_forward = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48
    length = training.PROMPT_TOKENS + 16
    per_token = 2 * (attention + feed_forward + (length + 1) * 32)
    assert training.training_flops(policy, 3, 16) == 6 * 3 * (length * per_token + 16 * 97 * 32)


def test_the_plain_script_has_our_logprobs(policy):
    tokens = np.random.default_rng(0).integers(97, size=(3, 32))
    theirs = plain_script.reference_logprobs(policy.config, policy.params, jnp.array(tokens), prompt=16)
    batch = make_batch(tokens[:, :16].tolist(), tokens[:, 16:].tolist())
    ours = completion_logprobs(policy.config, policy.params, batch).sum(axis=1)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_the_plain_script_draws_from_the_policy(policy):
    """First tokens have the frequencies of softmax of the logits; later ones follow on what was drawn."""
    prompts, draws = jnp.tile(jnp.arange(4)[None], (4096, 1)), 4096
    made = np.asarray(plain_script.rollout(policy.config, policy.params, prompts, jax.random.key(0), 3))
    caches = plain_script._caches(policy.config, 1, 4)
    logits = plain_script.forward(policy.config, policy.params, prompts[:1], 0, caches)[0][0, -1]
    expected = draws * np.asarray(jax.nn.softmax(logits))
    counts = np.bincount(made[:, 0], minlength=97)
    assert ((counts - expected) ** 2 / expected).sum() < 96 + 5 * np.sqrt(2 * 96)


def test_sections_of_training_and_decoding_are_apart(capsys):
    assert main(["--train", "--sections=decode"]) == 2
    assert "--sections: expected some of sft, dpo, rlhf, got 'decode'" in capsys.readouterr().err
