"""The β of a strength: what it is, how one retrains at it, and when the choice was right."""

import numpy as np
import pytest

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.tuning.beta import changes, make_target  # fmt: skip
from dera_jax.analysis.tuning.report import Retrained, choice_verdict
from dera_jax.analysis.tuning.retraining import (
    Cost,
    decoding_words,
    differing_settings,
    replaced,
    retrained_name,
    training_words,
)


def test_the_mixture_at_lambda_is_the_optimum_at_beta_star():
    """Eq. 2: π*(β) ∝ π_ref exp(r/β); so π_ref^{1−λ} π*(β)^λ is π*(β*)."""
    rng = np.random.default_rng(0)
    reference, reward = rng.dirichlet(np.ones(9)), rng.normal(size=9)

    def optimum(beta):
        weights = reference * np.exp(reward / beta)
        return weights / weights.sum()

    for lambda_ in (0.3, 0.5, 1, 2, 7):
        mixed = reference ** (1 - lambda_) * optimum(0.2) ** lambda_
        np.testing.assert_allclose(
            mixed / mixed.sum(), optimum(make_target(lambda_, 0.2).beta_star), rtol=5e-4
        )


@pytest.mark.parametrize(
    ("lambda_", "beta", "manifest", "reason"),
    [
        (0, 0.1, {}, "the reference itself"),
        (-1, 0.1, {}, "no β > 0"),
        (2, None, {}, "β is unknown"),
        (2, 0.1, {"method": "sft"}, "made by sft, which has no reference"),
        (2, 0.1, {"method": "rloo", "target_kl": 6.0}, "--target-kl"),
        (2, 0.1, {"method": "dpo", "preference": {"sync_ref_model": True}}, "--sync-ref-model"),
        (2, 0.1, {"method": "dpo", "reference": {"fingerprint": "b"}}, "not the model"),
    ],
)
def test_where_there_is_no_beta_star(lambda_, beta, manifest, reason):
    target = make_target(lambda_, beta, manifest, "a")
    assert target.beta_star is None and reason in target.reason


def test_each_tool_has_its_line():
    dpo = dict(changes(make_target(2, 0.1, {"method": "dpo", "preference": {"loss": "kto"}})))
    assert dpo == {
        "dera_jax": "python -m train.dpo … --beta=0.05",
        "TRL": "KTOConfig(beta=0.05), or --beta 0.05",
        "axolotl": "rl_beta: 0.05  # with rl: kto",
    }
    lines = [line for _, line in changes(make_target(0.3, 0.1))]
    assert lines[0].startswith("python -m train.dpo") and lines[1] == "python -m train.rlhf … --beta=0.3333"
    assert "DPOConfig(beta=0.3333)" in lines[2]
    assert "RLOOConfig(beta=0.05)" in dict(changes(make_target(2, 0.1, {"method": "ppo"})))["TRL"]


def test_what_trl_calls_beta():
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec("trl")
    if found is None:
        pytest.skip("no TRL")
    for name in ("dpo", "kto", "rloo"):
        tree = ast.parse((Path(found.origin).parent / "trainer" / f"{name}_config.py").read_text())
        fields = {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
        assert "beta" in fields


def test_commands_are_repeated_with_other_options(tmp_path):
    words = ["--model=m", "--beta", "0.1", "--max_steps=3", "--seed=0,1", "--out=a", "--lora-r", "4"]
    manifest = {
        "provenance": {"command": ["python", "-m", "train.rlhf", *words]},
        "train_config": {"seed": 1},
    }
    expected = ["--model=m", "--max_steps=3", "--lora-r", "4", "--beta=0.05", "--seed=1", f"--out={tmp_path}"]
    assert training_words(manifest, "m", 0.05, tmp_path) == ("train.rlhf", expected)
    manifest["provenance"]["command"] = ["rlhf.py", *words]
    assert training_words(manifest, "m", 0.05, tmp_path) == ("train.rlhf", expected)
    manifest["provenance"]["command"] = ["python", "-m", "train.sft", *words]
    with pytest.raises(ValueError, match=r"made by python -m train.sft; expected train.dpo or train.rlhf"):
        training_words(manifest, "m", 0.05, tmp_path)
    assert replaced(["--dry-run", "--a=1"], {"a": None}) == ["--dry-run"]
    run = {
        "provenance": {
            "command": [
                "python",
                "-m",
                "eval.sweep",
                "--top-k=5",
                "--lambda",
                "-1,2",
                "--reward=x",
                "--num-prompts=9",
            ],
            "models": [{"name": "ref"}, {"name": "m"}],
        },
        "extent": {"num_samples": 3},
    }
    decoded = decoding_words(run, "run", "new", tmp_path, 7, ["gold"], tmp_path)
    assert decoded[0] == "--top-k=5" and {"--lambda=1", "--reward=gold", "--num-prompts=7"} < set(decoded)
    assert {"--reference=ref", "--aligned=new", "--num-samples=3"} < set(decoded) and "-1,2" not in decoded


def test_a_retrained_adapter_stands_on_the_same_base(tmp_path):
    assert retrained_name("base+runs/adapter/best", tmp_path) == f"base+{tmp_path}/best"
    assert retrained_name("runs/model", tmp_path) == str(tmp_path)


def test_settings_that_decide_a_training_are_compared():
    there = {"method": "pg", "beta": 0.1, "seconds": 3, "train_config": {"max_steps": 2}}
    here = {"method": "rloo", "beta": 0.2, "seconds": 5, "train_config": {"max_steps": 2, "new": 0}}
    assert differing_settings(there, here) == ["method 'pg' there, 'rloo' here"]


def test_what_is_saved_is_counted_in_trainings():
    assert Cost(10.0, 20.0, None, 10).saved == pytest.approx(1 - 2 / 10)
    assert Cost(None, 20.0, None, 10).saved is None


@pytest.mark.parametrize(
    ("gained", "margin", "allowed", "verdict"),
    [
        (0.1, None, True, "right: the retrained model is better"),
        (-0.1, None, True, "wrong: the retrained model is worse"),
        (0.01, None, True, "open: the retrained model is neither"),
        (-0.1, 0.1, False, "right: the retrained model meets the constraints"),
        (0.1, -0.1, True, "wrong: the retrained model misses slots>=1"),
        (-0.1, 0.01, False, "open: whether the retrained model meets"),
        (None, 0.1, None, None),
    ],
)
def test_the_choice_was_right_by_constraints_first(gained, margin, allowed, verdict):
    def around(value):
        return Estimate(value, value - 0.05, value + 0.05)

    found = Retrained(
        beta=0.2, model="m", prompts=9, objective=around(0), cost=Cost(1.0, 1.0, None, 3), aligned_allowed=allowed,
        differences={} if gained is None else {(1.0,): around(gained)},
        margins={} if margin is None else {"slots>=1": around(margin)},
    )  # fmt: skip
    assert (choice_verdict(found) or "None").startswith(str(verdict))
