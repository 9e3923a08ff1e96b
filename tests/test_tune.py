"""The choice of a strength: laws on rows whose best strength is known, and a model retrained at β*."""

import json
import random
import struct

import numpy as np
import pytest

from dera_jax.commands import rlhf as rlhf_command
from dera_jax.commands import sweep as sweep_command
from dera_jax.commands import tune as tune_command
from dera_jax.metrics import Estimate
from dera_jax.objectives import Grid, Objective, make_objective, parse_constraint, read_grid
from dera_jax.policies import TOY
from dera_jax.results import read_rows
from dera_jax.retraining import (
    Cost,
    changes,
    decoding_words,
    differing_settings,
    make_target,
    replaced,
    retrained_name,
    training_words,
)  # fmt: skip
from dera_jax.strengths import parse_strengths
from dera_jax.tune import choose, finer_range, split, tune, wider_ranges
from dera_jax.tune_report import Retrained, choice_verdict

REWARD = Objective("gold")


def gridded(means, prompts, samples=2, noise=1.0, seed=0, **figures):
    """Returns a grid whose `gold` has these means by λ, with noise that a prompt's samples share in part."""
    rng = np.random.default_rng(seed)
    keys = tuple((prompt, sample, 0) for prompt in range(prompts) for sample in range(samples))
    shape = len(means), prompts, samples
    gold = np.array(list(means.values()))[:, None, None] + noise * rng.normal(size=shape)
    gold += noise * rng.normal(size=(len(means), prompts, 1))
    named = {name: np.repeat(np.array(values)[:, None], len(keys), 1) for name, values in figures.items()}
    strengths = tuple((float(s),) for s in means)
    return Grid(strengths, keys, {"gold": gold.reshape(len(means), -1)} | named)


def rows_of(grid, beta=0.1):
    """Returns rows that hold a grid's figures."""
    return [
        {
            "prompt_id": key[0], "sample": key[1], "turn": key[2], "seed": 0, "lambda": strength[0], "beta": beta,
            "prompt": f"prompt {key[0]}", "length": 5, "kl_to_reference": abs(strength[0]),
            "rewards": {name: float(grid.figures[name][i, j]) for name in grid.figures},
        }
        for i, strength in enumerate(grid.strengths)
        for j, key in enumerate(grid.keys)
    ]  # fmt: skip


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PEAK = {s: 0.5 - (s - 1.2) ** 2 for s in (0, 0.4, 0.8, 1.2, 1.6, 2)}
"""The best is λ = 1.2, by 0.16."""


# The choice


def test_the_choice_converges_to_the_best_strength():
    def right(prompts):
        grids = [gridded(PEAK, prompts, seed=seed) for seed in range(40)]
        return np.mean([choose(grid, REWARD, resamples=1).strength == (1.2,) for grid in grids])

    few, some, many = map(right, (8, 64, 1024))
    assert few < some < many == 1


def test_the_value_where_it_was_chosen_flatters_and_the_other_does_not():
    """All strengths are equally good, so that whatever gain is seen is chance."""
    flat = dict.fromkeys(range(11), 0.0)
    found = []
    for seed in range(200):
        grid = gridded(flat, 48, seed=seed)
        choosing, validation = split(grid, 0.5, seed)
        star = choose(choosing, REWARD, resamples=1).strength
        found.append([REWARD.values(part)[part.index(star)].mean() for part in (choosing, validation)])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert mean[0] > 10 * error[0] and abs(mean[1]) < 3 * error[1]


def test_shares_of_resamples_are_those_of_new_prompts():
    """The best of two strengths d apart is chosen with probability Φ(d/σ), σ that of their mean difference."""
    prompts, noise = 100, 1.0
    sigma = noise * np.sqrt(2 * (1 + 1 / 2) / prompts)
    shares = [
        choose(gridded({0: 0.0, 1: sigma}, prompts, noise=noise, seed=seed), REWARD, resamples=200).shares[
            (1.0,)
        ]
        for seed in range(100)
    ]
    # A resample's difference has the variance of the data's and of the drawing: Φ(d/(σ√2)) on average.
    assert np.mean(shares) == pytest.approx(0.760, abs=0.06)


def test_the_likely_strengths_are_the_fewest_that_suffice():
    choice = choose(gridded(PEAK, 40, seed=3), REWARD)
    assert sum(choice.shares.values()) == pytest.approx(1)
    chosen = [choice.shares[s] for s in choice.likely]
    assert sum(chosen) >= 0.95 > sum(chosen) - min(chosen)
    assert choice.strength in choice.likely


def test_of_equal_strengths_the_nearest_to_the_reference_is_chosen():
    assert choose(gridded({-2: 1.0, -1: 1.0, 0.5: 1.0, 3: 1.0}, 8, noise=0), REWARD).strength == (0.5,)


def test_a_price_and_a_constraint_move_the_choice():
    means = {s: float(s) for s in (0, 1, 2, 3)}
    grid = gridded(means, 16, noise=0.1, kl=[0, 0.3, 1.2, 2.7], quality=[-1.0, -1.01, -1.03, -1.5])
    assert choose(grid, REWARD).strength == (3.0,)
    # λ − 0.8 · 0.3 λ² is largest at λ = 2.1.
    assert choose(grid, Objective("gold", kl_price=0.8)).strength == (2.0,)
    for bound, best in (
        ("quality>=-2%", 1),
        ("quality>=-3%", 2),
        ("kl<=1", 1),
        ("quality>=-1.03", 2),
        ("kl<=9", 3),
    ):
        choice = choose(grid, REWARD, [parse_constraint(bound, ["quality"])])
        assert choice.strength == (best,), bound
        assert [s[0] for s, allowed in choice.satisfied.items() if allowed] == list(range(best + 1))
    with pytest.raises(ValueError, match=r"nearest, λ = 0, misses quality>=0.5 by 1.5 \(it has -1\)"):
        choose(grid, REWARD, [parse_constraint("quality>=0.5", ["quality"])])


def test_resamples_in_which_no_strength_is_allowed_choose_none():
    grid = gridded({1: 0.0, 2: -0.05}, 20, seed=5)
    best = REWARD.values(grid).mean(axis=1).max()
    choice = choose(grid, REWARD, [parse_constraint(f"gold>={best - 1e-6:.6f}", ["gold"])])
    assert sum(choice.satisfied.values()) == 1 and choice.satisfied[choice.strength]
    assert 0.2 < sum(choice.shares.values()) < 0.95
    assert choice.likely == [s for s in grid.strengths if choice.shares[s]]


def test_a_win_rate_counts_each_pair_of_completions():
    grid = gridded(PEAK, 12)
    grid.figures["gold"][:] = np.round(grid.figures["gold"])  # so that there are ties
    values = Objective("gold", against=(0.4,)).values(grid)
    base = grid.figures["gold"][1]
    for i in range(len(PEAK)):
        wins = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, b in zip(grid.figures["gold"][i], base, strict=True)
        ]
        assert values[i].tolist() == wins
    assert set(values[1]) == {0.5}


# The parts


def test_a_prompts_side_is_its_own():
    grid = gridded(PEAK, 400)
    _, validation = split(grid, 0.25, seed=1)
    assert len(set(validation.prompts)) == pytest.approx(100, abs=30)
    fewer = grid.part(lambda prompt: prompt % 2 == 0)
    assert set(split(fewer, 0.25, seed=1)[1].prompts) == {p for p in validation.prompts if p % 2 == 0}
    assert set(split(grid, 0.25, seed=2)[1].prompts) != set(validation.prompts)


def test_missing_cells_are_named_or_left_out():
    rows = rows_of(gridded(PEAK, 10))
    lacking = [row for row in rows if (row["prompt_id"], row["sample"], row["lambda"]) != (3, 1, 0.8)]
    groups = {(float(s),): [row for row in lacking if row["lambda"] == s] for s in PEAK}
    with pytest.raises(ValueError, match=r"run: 1 of 120 cells are missing \(prompt 3, sample 1, λ = 0.8\)"):
        read_grid(groups, ["gold"], "run")
    grid, left_out = read_grid(groups, ["gold"], "run", allow_missing=True)
    assert left_out == 1 and len(grid.keys) == 19 and (3, 1, 0) not in grid.keys
    groups[(0.4,)][0]["rewards"]["gold"] = None
    groups[(0.8,)].append(next(row for row in rows if row not in lacking))
    with pytest.raises(
        ValueError, match=r"1 of 120 cells have no number for gold \(prompt 0, sample 0, λ = 0.4\)"
    ):
        read_grid(groups, ["gold"], "run")
    with pytest.raises(ValueError, match="two rows"):
        read_grid({(0.0,): [rows[0], rows[0]]}, ["gold"], "run")


# β*


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
            mixed / mixed.sum(), optimum(make_target(lambda_, 0.2).beta_star), rtol=1e-4
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
    assert lines[0].startswith("python -m train.dpo") and lines[1] == "python -m train.rlhf … --beta=0.333333"
    assert "DPOConfig(beta=0.333333)" in lines[2]
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


@pytest.mark.parametrize("text", ["0:2:0.2", "0.5,2/3,1,2,5,10", "0:1:0.5", "-1,0,1", "0,1"])
def test_wider_ranges_begin_where_the_grid_ends(text):
    strengths = parse_strengths(text)
    for end, sign in ((max(strengths), 1), (min(strengths), -1)):
        (wider,) = wider_ranges(strengths, end)
        beyond = parse_strengths(wider)
        assert all(sign * (s[0] - end[0]) > 0 for s in beyond)
    if len(strengths) > 2:
        assert wider_ranges(strengths, sorted(strengths)[1]) == [None]
    assert wider_ranges([(0.0, 0.0), (1.0, 0.5), (0.5, 1.0)], (0.5, 1.0)) == [None, "1.5:2:0.5"]


def test_beside_an_excluded_strength_a_finer_grid_is_asked_for():
    grid = gridded({0: 0.0, 0.5: 1.0, 1: 2.0}, 12, noise=0, kl=[0, 1, 4])
    for bound, other, finer in (("kl<=2", 1.0, "0.6:0.9:0.1"), ("kl<=0.5", 0.5, "0.1:0.4:0.1")):
        choice = choose(grid, REWARD, [parse_constraint(bound, [])])
        assert finer_range(choice) == ((other,), finer)
        assert all(choice.strength < s < (other,) for s in parse_strengths(finer))
    assert finer_range(choose(grid, REWARD)) is None


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


# The command


def run_command(capsys, *words):
    code = tune_command.main(list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err


def size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture(scope="module")
def peaked(tmp_path_factory):
    grid = gridded(PEAK, 100, seed=1, noise=0.3, quality=[1, 0.99, 0.985, 0.981, 0.9, 0.7])
    return write_rows(tmp_path_factory.mktemp("run") / "rows.jsonl", rows_of(grid))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    grid = gridded({0: 0, 1: 1}, 24, samples=1, quality=[1, 0.9])
    return write_rows(tmp_path_factory.mktemp("run") / "rows.jsonl", rows_of(grid))


def test_the_command_tells_all_and_the_order_of_rows_does_not_matter(peaked, tmp_path, capsys):
    shuffled = peaked.read_text().splitlines()
    random.Random(0).shuffle(shuffled)
    other = tmp_path / "rows.jsonl"
    other.write_text("\n".join(shuffled))
    figures, told = [], []
    for number, run in enumerate((peaked, other)):
        out, plot = tmp_path / f"{number}.json", tmp_path / "0.png"
        code, text, _ = run_command(
            capsys, run, "--objective=gold", "--constraint=quality>=-2%", "--constraint=kl<=5", f"--out={out}",
            *([] if number else [f"--plot={plot}"]),
        )  # fmt: skip
        assert code == 0
        figures.append(json.loads(out.read_text()) | {"run": None, "provenance": None})
        told.append([line for line in text.splitlines() if "tmp" not in line])
    assert figures[0] == figures[1] and told[0][:-1] == told[1][:-1]
    assert size(tmp_path / "0.png")[0] > 2000
    found = figures[0]
    assert found["lambda"] == 1.2 and found["beta_star"] == [0.0833333]
    assert found["value"]["mean"] == pytest.approx(
        PEAK[1.2], abs=2 * (found["value"]["high"] - found["value"]["low"])
    )
    assert list(found["differences"]) == ["0"] and found["margins"]["kl<=5"]["mean"] == pytest.approx(3.8)
    assert [s["allowed"] for s in found["strengths"]] == [True] * 4 + [False] * 2
    text = "\n".join(told[0])
    for line in (
        "1.2 *", "λ* = 1.2: objective", "rl_beta: 0.0833333", "not compared with λ = 1: not in the run",
        "quality>=-2%: holds by 0.001", "β* = β/λ* = 0.1/1.2 = 0.0833333",
    ):  # fmt: skip
        assert line in text


def test_a_strength_at_the_edge_asks_for_more(tmp_path, capsys):
    run = write_rows(
        tmp_path / "rows.jsonl", rows_of(gridded({0: 0, 0.5: 1, 1: 2}, 30, noise=0.1), beta=None)
    )
    code, text, _ = run_command(capsys, run)
    assert code == 0 and "add --lambda=1.5:2:0.5 to the sweep" in text and "no β*: β is unknown" in text
    assert "β* = β/λ* = 0.3/1 = 0.3" in run_command(capsys, run, "--beta=0.3")[1]


def test_a_win_rate_on_a_second_run(peaked, tmp_path, capsys):
    other = gridded(PEAK, 60, seed=9)
    rows = [row | {"prompt": f"another {row['prompt_id']}"} for row in rows_of(other) if row["lambda"] != 2]
    second = write_rows(tmp_path / "rows.jsonl", rows)
    code, text, errors = run_command(
        capsys, peaked, "--objective=win-rate", "--judge=gold", f"--validation={second}"
    )
    assert code == 0 and "validated on 60 prompts (120 completions" in text
    assert "5 of 6 strengths are in both runs" in errors and "win rate by gold against λ = 0" in text
    (reference,) = (line for line in text.splitlines() if line.split()[:2] == ["0", "∞"])
    assert reference.count("0.500 ± 0.000") == 2
    code, _, errors = run_command(capsys, peaked, "--objective=gold", f"--validation={peaked}")
    assert code == 2 and "100 of its prompts are those of" in errors


def test_several_aligned_models_have_a_beta_star_each(tmp_path, capsys):
    strengths = parse_strengths("0:1:0.5x0:1:0.5", 2)
    rng = np.random.default_rng(0)
    rows = [
        {"prompt_id": p, "sample": 0, "lambda": list(s), "beta": 0.1, "length": 1, "kl_to_reference": 0.0,
         "prompt": str(p), "rewards": {"gold": -((s[0] - 0.5) ** 2) - (s[1] - 1) ** 2 + 0.01 * rng.normal()}}
        for p in range(40) for s in strengths
    ]  # fmt: skip
    run = write_rows(tmp_path / "rows.jsonl", rows)
    code, text, _ = run_command(capsys, run, "--beta=0.1", f"--plot={tmp_path / 'a.png'}")
    assert code == 0 and size(tmp_path / "a.png")[0] > 1000
    assert "β*₁ = β₁/λ*₁ = 0.1/0.5 = 0.2\nβ*₂ = β₂/λ*₂ = 0.1/1 = 0.1" in text
    assert "λ* of aligned model 2 is the largest strength tried: the best may lie beyond; add" in text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--objective=nope"], "--objective: no reward 'nope'; the rows have gold, quality"),
        ([], "--objective: expected a reward or win-rate; the rows have gold, quality"),
        (["--objective=win-rate"], "--judge: expected the reward that decides"),
        (["--objective=gold", "--judge=gold"], "--judge has no meaning"),
        (["--objective=gold", "--against=1"], "--against has no meaning"),
        (["--objective=win-rate", "--judge=gold", "--against=7"], "λ = 7 is needed and not among the strengths"),
        (["--objective=gold", "--kl-price=-1"], "--kl-price: expected a number of at least 0"),
        (["--objective=gold", "--constraint=quality"], "--constraint: expected NAME>=NUMBER or NAME<=NUMBER"),
        (["--objective=gold", "--constraint=slots>=1"], "no figure 'slots'; the rows have gold, quality, kl, length"),
        (["--objective=gold", "--constraint=kl<=5%"], "the mean of kl is 0 at λ = 0; write a number"),
        (["--objective=gold", "--constraint=quality>=1.1"], "the nearest, λ = 0, misses quality>=1.1 by 0.1 ("),
        (["--objective=gold", "--validation=1.5"], "--validation: expected a share between 0 and 1"),
        (["--objective=gold", "--validation=0.01"], "expected at least 8 prompts to choose on"),
        (["--objective=gold", "--validation=/no/run"], "cannot read /no/run"),
        (["--objective=gold", "--beta=0.2"], "--beta: the rows have 0.1, found 0.2"),
        (["--objective=gold", "--beta=x"], "--beta: expected a number of at least 0"),
        (["--objective=gold", "--retrain"], "--retrain: no manifest.json beside the rows"),
        (["--objective=gold", "--retrain-out=x"], "--retrain-out has no meaning without --retrain"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_line(small, words, error, capsys):
    code, _, errors = run_command(capsys, small, *words)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert error in errors


def test_one_strength_leaves_no_choice(tmp_path, capsys):
    run = write_rows(tmp_path / "rows.jsonl", rows_of(gridded({1: 0}, 30)))
    code, _, errors = run_command(capsys, run)
    assert code == 2 and "expected at least 2 strengths, found 1" in errors


def test_the_objective_of_a_sole_reward_needs_no_name():
    assert make_objective(None, None, (0.0,), 0.0, ["gold"]) == REWARD
    assert tune(*split(gridded(PEAK, 60), 0.5), REWARD).validation.completions < 120


# Retraining


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model aligned in two steps, and its sweep."""
    work = tmp_path_factory.mktemp("retrain")
    common = ["--reward=length:16:24", "--max-new-tokens=12", "--beta=0.1"]
    training = [f"--model={TOY / 'reference'}", "--data=toy", "--num-prompts=16", "--max-steps=2"]
    training += ["--batch-size=16", "--num-samples=2", "--learning-rate=0.01"]
    assert rlhf_command.main([*training, *common, f"--out={work / 'aligned'}"]) == 0
    sweep = [f"--reference={TOY / 'reference'}", f"--aligned={work / 'aligned'}", "--prompts=toy", *common]
    sweep += ["--lambda=0.5,1,2", "--num-prompts=24", "--rows=8", f"--out={work / 'run'}"]
    assert sweep_command.main(sweep) == 0
    return work, [*training, *common]


def test_retraining_at_beta_star_is_compared_and_goes_on(trained, capsys):
    work, training = trained
    out, figures = work / "tuned", work / "tuned.json"
    # So high a price that the least of the strengths is the best.
    words = [
        work / "run", "--kl-price=1000", "--retrain", f"--retrain-out={out}", f"--out={figures}",
        f"--plot={work / 'tuned.png'}",
    ]  # fmt: skip
    code, text, _ = run_command(capsys, *words)
    assert code == 0
    first = json.loads(figures.read_text())
    found = first["retrained"]
    assert first["lambda"] == 0.5 and found["beta"] == 0.2
    assert json.loads((out / "model" / "manifest.json").read_text())["beta"] == 0.2
    # The same model as of the command itself.
    assert rlhf_command.main([*training, "--beta=0.2", f"--out={work / 'direct'}"]) == 0
    name = "model.safetensors"
    assert (out / "model" / name).read_bytes() == (work / "direct" / name).read_bytes()
    assert (out / "model" / name).read_bytes() != (work / "aligned" / name).read_bytes()
    # The comparison, once more from the rows.
    retrained = {(row["prompt_id"], row["sample"]): row for row in read_rows(out / "sweep")}
    there = {(row["prompt_id"], row["sample"], row["lambda"]): row for row in read_rows(work / "run")}
    assert len(retrained) == found["prompts"] == first["parts"]["validation"]["prompts"] >= 8

    def value(row):
        return row["rewards"]["length:16:24"] - 1000 * row["kl_to_reference"]

    for strength, told in ((0.5, found["less_dera"]), (1, found["differences"]["1"])):
        paired = [value(row) - value(there[*key, strength]) for key, row in retrained.items()]
        assert told["mean"] == pytest.approx(np.mean(paired))
    assert found["cost"]["strengths"] == 3 and found["cost"]["saved"] == pytest.approx(1 / 3)
    for line in (
        "retrained at β* = 0.2",
        "less DeRa at λ* = 0.5, paired",
        "not compared: models trained",
        "33% saved",
    ):
        assert line in text
    # Stopped while it was decoding: what is there stays, the rest is made, and nothing is trained again.
    rows = out / "sweep" / "rows.jsonl"
    whole = rows.read_text()
    rows.write_text("".join(whole.splitlines(keepends=True)[:5]) + '{"torn')
    before = (out / "model" / name).stat().st_mtime_ns
    code, _, errors = run_command(capsys, *words)
    assert code == 0 and "trained already" in errors and before == (out / "model" / name).stat().st_mtime_ns
    again = json.loads(figures.read_text())
    assert again["retrained"] == found and sorted(rows.read_text().splitlines()) == sorted(whole.splitlines())


def test_retraining_tells_what_it_lacks(trained, tmp_path, capsys):
    work, _ = trained
    words = [work / "run", "--kl-price=1000", "--retrain", f"--retrain-out={tmp_path / 'x'}"]
    code, text, errors = run_command(capsys, *words, f"--aligned={TOY / 'reference'}")
    assert code == 2 and "λ* = 0.5" in text and "which has no reference and so no β" in errors
    other = tmp_path / "prompts.jsonl"
    other.write_text("".join(f'{{"id": "toy-{n:03}", "prompt": "Other"}}\n' for n in range(24)))
    code, _, errors = run_command(capsys, *words, f"--prompts={other}")
    assert code == 2 and "is another in the run" in errors
    other.write_text('{"id": "toy-000", "prompt": "Other"}\n')
    code, _, errors = run_command(capsys, *words, f"--prompts={other}")
    assert code == 2 and ("is not in" in errors or "is another" in errors)


def test_the_aligned_model_itself_is_not_trained_again(trained, tmp_path, capsys):
    work, _ = trained
    kl = {
        s: np.mean([row["kl_to_reference"] for row in read_rows(work / "run") if row["lambda"] == s])
        for s in (0.5, 1)
    }
    words = ["--kl-price=1000", f"--constraint=kl>={sum(kl.values()) / 2:.8f}", "--retrain"]
    code, text, _ = run_command(capsys, work / "run", *words, f"--retrain-out={tmp_path / 'x'}")
    assert code == 0 and "λ* = 1 is the aligned model itself" in text and not (tmp_path / "x").exists()
