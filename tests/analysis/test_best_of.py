"""The best of n stored samples: over all subsets, as they can be listed."""

from itertools import combinations

import numpy as np
import pytest

from dera_jax.analysis.best_of import best_of_curves, best_weights, choice_bound, rank, tell_search
from dera_jax.commands import score
from tests.support.rows import make_rows, row, write_run


def by_subsets(scores, n):
    """The share of the subsets that each is the best of, equal ones dividing theirs."""
    found = np.zeros(len(scores))
    subsets = list(combinations(range(len(scores)), n))
    for subset in subsets:
        top = max(scores[i] for i in subset)
        best = [i for i in subset if scores[i] == top]
        found[best] += 1 / len(best) / len(subsets)
    return found


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 5.0, 4.0], [1, 0, 1, 1, 0, 2], [0.0] * 4, [1.0]])
def test_weights_are_those_of_all_subsets(scores):
    for n in range(1, len(scores) + 1):
        # Equal samples divide what their level has, however subsets divide it: the mean of a level is what counts.
        np.testing.assert_allclose(best_weights(scores, n), by_subsets(scores, n), atol=1e-12)


def test_the_estimate_is_unbiased():
    """Over many sets of samples its mean is that of n fresh draws, of which the best is kept."""
    draw = np.random.default_rng(0)
    sets = draw.geometric(0.3, size=(4000, 6)).astype(float)
    found = [best_weights(each, 4) @ each for each in sets]
    fresh = draw.geometric(0.3, size=(200_000, 4)).max(1)
    error = np.hypot(np.std(found) / np.sqrt(len(found)), fresh.std() / np.sqrt(len(fresh)))
    assert abs(np.mean(found) - fresh.mean()) < 4 * error


def judged(prompts=12, samples=5):
    rows = make_rows(1, prompts=prompts, samples=samples)
    for each in rows:
        each["rewards"]["length:1:2"] = 0.0 if each["length"] <= 2 else -1.0
        each["sampling_logprob"] = -0.5
    return rows


def test_curves_begin_at_the_plain_mean_and_rise():
    rows = judged()
    curves = best_of_curves(rows, "length:1:2")
    assert [(each.lambda_, each.n) for each in curves] == [
        ((x,), n) for x in (0.0, 0.5, 2.0) for n in range(1, 6)
    ]
    for strength in (0.0, 0.5, 2.0):
        own = [each for each in rows if each["lambda"] == strength]
        at = {each.n: each for each in curves if each.lambda_ == (strength,)}
        assert at[1].rewards["length:1:2"].mean == pytest.approx(
            np.mean([each["rewards"]["length:1:2"] for each in own])
        )
        assert at[1].length.mean == pytest.approx(np.mean([each["length"] for each in own]))
        means = [at[n].rewards["length:1:2"].mean for n in range(1, 6)]
        assert means == sorted(means) and means[0] < means[-1]
        for n in range(1, 6):
            assert at[n].kl_bound.mean == pytest.approx(0.5 + np.log(n) - (n - 1) / n)


def test_many_samples_are_shown_at_powers_of_two():
    rows = [row(prompt, sample) for prompt in range(2) for sample in range(20)]
    assert [each.n for each in best_of_curves(rows, "log-ratio")] == [*range(1, 9), 16, 20]
    assert rank(rows[0], "log-ratio") == 3.0 and choice_bound(1) == 0


@pytest.mark.parametrize(
    ("rows", "ranking", "told"),
    [
        ([row(), row(1)], "log-ratio", "expected several samples of each prompt, found one at λ = 1"),
        ([row(), row(0, 1)], "slots", "the rows have no reward 'slots'; they have log-ratio"),
        (
            [row(rewards={"slots": None}), row(0, 1, rewards={"slots": 1.0})],
            "slots",
            "found 1 of 2 without it",
        ),
        ([row(), row(0, 1, turn=1)], "log-ratio", "expected prompts of one turn"),
        ([row(search={}), row(0, 1)], "log-ratio", "the rows were chosen among candidates already"),
        ([row(aligned_logprob=[-1.0, -2.0])], "log-ratio", "expected rows of one aligned model"),
    ],
)
def test_what_says_nothing_is_refused(rows, ranking, told):
    with pytest.raises(ValueError, match=told):
        best_of_curves(rows, ranking)


def test_what_a_search_took_is_told():
    found = {"candidates": 8, "tokens": 24, "score": 0.0, "runner_up": -1.0}
    assert "8 candidates on average, for 8 forward passes a token" in tell_search([row(search=found)])
    assert "at most 1.20 nats" in tell_search([row(search=found)])
    assert tell_search([row()]) is None


def test_the_command_prints_the_table(call, refused, tmp_path):
    run = write_run(tmp_path / "run", judged())
    code, out, err = call(score.main, run, "--best-of=length:1:2")
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 120
    heading, _, *lines = out.splitlines()[2:]
    assert heading.split() == "λ n log n − (n − 1)/n KL ≤ (nats) length:1:2 length (tokens)".split()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["0", "1", "0.000"],
        ["0", "2", "0.193"],
        ["0", "3", "0.432"],
    ]
    assert "they have length:1:2, log-ratio" in refused(score.main, run, "--best-of=slots")
    assert "--prompts has a meaning only with" in refused(score.main, run, "--best-of=slots", "--prompts=toy")
    assert "--best-of has no meaning with --pairs" in refused(score.main, "--pairs=x", "--best-of=slots")
