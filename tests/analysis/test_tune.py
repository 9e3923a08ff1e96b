"""The choice of a strength: laws on rows whose best strength is known."""

import numpy as np
import pytest

from dera_jax.analysis.tuning.choose import choose, split, tune
from dera_jax.analysis.tuning.grid import read_grid
from dera_jax.analysis.tuning.objectives import Objective, make_objective, parse_constraint
from dera_jax.analysis.tuning.ranges import finer_range, wider_ranges
from dera_jax.common.hashed import hashed_uniform
from dera_jax.strengths import parse_strengths
from tests.support.grids import PEAK, REWARD, gridded, rows_of

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


def test_few_prompts_are_divided_exactly():
    """Where the hash would leave a part too few, the order by hash divides; no other division moves."""
    for seed in range(20):
        for prompts, share, counts in ((20, 0.5, (10, 10)), (16, 0.5, (8, 8)), (40, 0.2, (32, 8))):
            grid = gridded(PEAK, prompts, samples=1)
            parts = [set(part.prompts) for part in split(grid, share, seed)]
            assert parts[0] | parts[1] == set(range(prompts)) and not parts[0] & parts[1]
            hashed = sum(hashed_uniform(seed, prompt) < share for prompt in range(prompts))
            exact = not 8 <= hashed <= prompts - 8
            assert tuple(map(len, parts)) == (counts if exact else (prompts - hashed, hashed))
            assert max(hashed_uniform(seed, p) for p in parts[1]) < min(
                hashed_uniform(seed, p) for p in parts[0]
            )
    with pytest.raises(ValueError, match=r"found 8 and 7: a sweep of at least 16 .* or --validation=RUN"):
        split(gridded(PEAK, 15, samples=1), 0.45, 0)
    with pytest.raises(ValueError, match=r"found 19 and 1: --validation=0.5 leaves enough for both"):
        split(gridded(PEAK, 20, samples=1), 0.05, 0)


def test_missing_cells_are_named_or_left_out():
    rows = rows_of(gridded(PEAK, 10))
    lacking = [row for row in rows if (row["prompt_id"], row["sample"], row["lambda"]) != (3, 1, 0.8)]
    groups = {(float(s),): [row for row in lacking if row["lambda"] == s] for s in PEAK}
    with pytest.raises(
        ValueError, match=r"run: 1 completion is missing, the first at λ = 0.8: prompt 3, sample 1;"
    ):
        read_grid(groups, ["gold"], "run")
    grid, left_out = read_grid(groups, ["gold"], "run", allow_missing=True)
    assert left_out == 1 and len(grid.keys) == 19 and (3, 1, 0) not in grid.keys
    groups[(0.4,)][0]["rewards"]["gold"] = None
    groups[(0.8,)].append(next(row for row in rows if row not in lacking))
    with pytest.raises(
        ValueError, match=r"1 completion has no number for gold, the first at λ = 0.4: prompt 0, sample 0;"
    ):
        read_grid(groups, ["gold"], "run")
    with pytest.raises(ValueError, match="two rows"):
        read_grid({(0.0,): [rows[0], rows[0]]}, ["gold"], "run")


def test_the_objective_of_a_sole_reward_needs_no_name():
    assert make_objective(None, None, (0.0,), 0.0, ["gold"]) == REWARD
    assert tune(*split(gridded(PEAK, 60), 0.5), REWARD).validation.completions < 120


# Ranges that ask for more


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
