import csv
import math

import numpy as np
import pytest

from dera_jax.analysis import importance
from dera_jax.analysis.estimates import bootstrap_interval, estimate, paired_difference
from dera_jax.analysis.importance import effective_sample_size
from dera_jax.analysis.reports import warnings_of, write_summary_csv
from dera_jax.analysis.summaries import summarize
from tests.support.rows import row


def test_intervals_cover_the_mean_when_prompts_differ():
    """Drawing completions instead of prompts would cover about half the time here."""
    rng = np.random.default_rng(0)
    covered, covered_by_completions = 0, 0
    for _ in range(200):
        prompts = rng.normal(size=(50, 1))
        values = (3.0 + prompts + 0.3 * rng.normal(size=(50, 8))).ravel()
        groups = np.repeat(np.arange(50), 8)
        low, high = bootstrap_interval(values, groups)
        covered += low <= 3.0 <= high
        low, high = bootstrap_interval(values, range(400))
        covered_by_completions += low <= 3.0 <= high
    assert 0.90 <= covered / 200 <= 0.99
    assert covered_by_completions / 200 < 0.7


def test_intervals_have_the_textbook_length_for_independent_values():
    values = np.random.default_rng(1).normal(scale=2.0, size=400)
    low, high = bootstrap_interval(values, range(400), resamples=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(400), rel=0.06)
    assert low < values.mean() < high


def test_intervals_weigh_prompts_by_their_completions():
    """Groups of 1 and 3: the resamples' means are 0, 3/4 and 1, by hand."""
    low, high = bootstrap_interval([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"])
    assert (low, high) == (0.0, 1.0)
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 6, size=30)
    groups = np.repeat(np.arange(30), sizes)
    values = rng.normal(size=len(groups))
    draws = [rng.integers(30, size=30) for _ in range(4000)]
    means = [np.concatenate([values[groups == g] for g in draw]).mean() for draw in draws]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(values, groups, resamples=4000), expected, atol=0.03)


def test_intervals_are_repeatable_and_blind_to_names_of_prompts():
    values = np.random.default_rng(3).normal(size=60)
    groups = np.arange(60) % 20
    assert bootstrap_interval(values, groups) == bootstrap_interval(values, [f"p{g}" for g in groups])
    assert bootstrap_interval(values, groups) != bootstrap_interval(values, groups, seed=1)
    order = np.random.default_rng(4).permutation(60)
    assert estimate(values, groups) == estimate(values[order], groups[order])


def test_one_prompt_tells_nothing_about_others_and_equal_values_have_no_spread():
    assert np.isnan(bootstrap_interval([1.0, 2.0], [0, 0])).all()
    assert bootstrap_interval([0.1] * 10, range(10)) == (0.1, 0.1)


def test_a_few_prompts_that_agree_earn_no_interval():
    """Two pairs of two right are not an accuracy of 1 ± 0."""
    assert np.isnan(bootstrap_interval([1.0, 1.0], [0, 1])).all()
    assert np.isnan(bootstrap_interval([0.1] * 9, range(9))).all()
    # Prompts agree by their means; and by rounding, 0.1 + 0.2 + 0.3 being another number than 0.3 + 0.2 + 0.1.
    assert np.isnan(bootstrap_interval([0.0, 1.0, 0.5], [0, 0, 1])).all()
    assert np.isnan(bootstrap_interval([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], [0] * 3 + [1] * 3)).all()
    assert bootstrap_interval([1.0, 1.0, 0.0], range(3)) == (0.0, 1.0)
    assert bootstrap_interval([5.0, 5.0 + 1e-6], range(2)) == pytest.approx((5.0, 5.0 + 1e-6))


def test_no_distance_from_the_reference_is_known_of_any_prompts():
    rows = [row(p, 0, v, kl_to_reference=1.5 * v) for p in range(3) for v in (0, 1)]
    reference, aligned = (s.kl_to_reference for s in summarize(rows))
    assert (reference.mean, reference.low, reference.high) == (0, 0, 0)
    assert aligned.mean == 1.5 and math.isnan(aligned.low) and math.isnan(aligned.high)


def test_coverage_is_the_share_of_prompts_and_turns():
    own = [row(p, s, [0.25, 0.5, 0.5, 2][p]) for p in range(4) for s in range(2)]
    assert [s.coverage for s in summarize(own)] == [0.25, 0.5, 0.25]
    shared = [row(p, 0, v) for p in range(4) for v in (0, 1)]
    assert [(s.lambda_, s.coverage) for s in summarize(own + shared)][::4] == [((0.0,), 1.0), ((2.0,), 0.25)]
    turns = [row(p, 0, turn / 2, turn=turn) for p in range(3) for turn in range(2)]
    assert [s.coverage for s in summarize(turns)] == [0.5, 0.5]


def test_paired_differences_are_tighter_than_the_means():
    rng = np.random.default_rng(4)
    shared = rng.normal(size=(60, 2))
    keys = [(p, s) for p in range(60) for s in range(2)]
    base = dict(zip(keys, shared.ravel(), strict=True))
    values = dict(zip(keys, (shared + 0.2 + 0.1 * rng.normal(size=(60, 2))).ravel(), strict=True))
    difference = paired_difference(values, base)
    low, high = bootstrap_interval(list(values.values()), [p for p, _ in keys])
    assert difference.mean == pytest.approx(np.mean(list(values.values())) - np.mean(list(base.values())))
    assert difference.half_width < (high - low) / 2 / 5
    assert difference.low < 0.2 < difference.high
    assert paired_difference({(0, 0): 1.0}, {(0, 1): 1.0}) is None
    assert paired_difference({(0, 0): 3.0, (7, 0): 9.0}, {(0, 0): 1.0, (8, 0): 5.0}).mean == 2.0


def test_effective_sample_size_of_known_cases():
    assert effective_sample_size(np.zeros(5)) == 5
    assert effective_sample_size([0.0, -math.inf, -math.inf]) == 1
    assert effective_sample_size(np.log([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_sample_size([5000.0, 5000.0 + math.log(3)]) == pytest.approx(16 / 10)
    # Weights exp(σ g), g normal: ESS/n → exp(−σ²).
    log_weights = 0.5 * np.random.default_rng(5).normal(size=200_000)
    assert effective_sample_size(log_weights) / 200_000 == pytest.approx(math.exp(-0.25), rel=0.02)


def test_ess_compares_weights_within_a_prompt_and_of_ended_rows_only():
    log_w = {0: [0.0, math.log(3)], 1: [7.0, 7.0]}
    rows = [row(p, s, 0.5, log_normalizer=w) for p in log_w for s, w in enumerate(log_w[p])]
    rows += [row(0, 2, 0.5, log_normalizer=99.0, finish_reason="length"), row(2, 0, 0.5, log_normalizer=50.0)]
    assert summarize(rows)[0].ess == pytest.approx((0.8 + 1.0) / 2)
    # The weight is that of the distribution drawn from: here a truncated one undoes it.
    undone = [row(0, s, 0.5, log_normalizer=w, sampling_logprob=-3.0 + w) for s, w in enumerate(log_w[0])]
    assert summarize(undone)[0].ess == pytest.approx(1.0)
    assert summarize([row(p) for p in range(3)])[0].ess is None
    assert summarize([row(0, s, log_normalizer=None) for s in range(3)])[0].ess is None


def test_ess_of_conversations_is_of_whole_ones():
    """A later turn follows an answer of its own and has its own constant: only products of turns compare."""
    constants, log_w = (0.0, -6.0), [0.0, math.log(3)]
    rows = [
        row(0, s, 0.5, turn=turn, log_normalizer=constants[turn] + log_w[s] / 2)
        for turn in (0, 1)
        for s in (0, 1)
    ]
    assert summarize(rows)[0].ess == pytest.approx(0.8)
    equal = [one | {"log_normalizer": constants[one["turn"]]} for one in rows]
    assert summarize(equal)[0].ess == 1
    # A conversation with a turn that was cut off, is missing or has no weight, has none.
    third = [row(0, 2, 0.5, turn=turn, log_normalizer=50.0) for turn in (0, 1)]
    for broken in ({"finish_reason": "length"}, {"finish_reason": "stop"}, {"log_normalizer": None}):
        assert summarize([*rows, third[0], third[1] | broken])[0].ess == pytest.approx(0.8)
    assert summarize([*rows, third[0]])[0].ess == pytest.approx(0.8)


def test_copies_of_a_greedy_text_are_no_samples():
    greedy = [row(p, s, 0.5, sampling_logprob=0.0, completion="x") for p in (0, 1) for s in range(4)]
    (summary,) = summarize(greedy)
    assert (summary.ess, summary.copies) == (None, 6)
    (line,) = warnings_of([summary])
    assert "6 of 8 completions are copies, drawn with certainty (--temperature=0)" in line
    # Of the prompts beside them nothing changes.
    drawn = [row(2, s, 0.5, log_normalizer=w) for s, w in enumerate([0.0, math.log(3)])]
    assert summarize([*greedy, *drawn])[0].ess == pytest.approx(0.8)
    assert summarize(drawn)[0].copies == 0
    assert summarize([row(p, 0, sampling_logprob=0.0) for p in range(3)])[0].copies == 0


def test_log_weights_are_those_of_rows_that_have_one():
    rows = [
        row(0, s, 0.5, finish_reason=reason, log_normalizer=0.1 * s)
        for s, reason in enumerate(("eos", "stop", "length", "eos"))
    ]
    ((first, _), (second, same)) = importance.log_weights(rows)[0]
    assert (first, second) == (0.0, pytest.approx(0.3)) and same == [rows[3]]


def test_summaries_are_in_order_and_count():
    rows = [
        row(p, s, lambda_, length=10 * p + s, finish_reason=["eos", "length", "stop", "length"][2 * s + p])
        for lambda_ in (2, 0, -1, 0.5)
        for p in range(2)
        for s in range(2)
    ]
    summaries = summarize(rows)
    assert [s.lambda_ for s in summaries] == [(-1.0,), (0.0,), (0.5,), (2.0,)]
    assert [s.beta_effective for s in summaries] == [None, math.inf, 0.2, 0.05]
    for s in summaries:
        assert (s.n, s.prompts, s.tokens, s.ended, s.beta) == (4, 2, 0 + 1 + 10 + 11 + 1, 0.5, 0.1)
        assert s.length.mean == 5.5 and (s.length.low, s.length.high) == (0.5, 10.5)
        assert s.kl_to_reference.mean == 1.5 and s.log_ratio.mean == 3.0
        assert s.rewards == {} and s.reward_differences == {}


def test_several_aligned_models_have_no_single_beta_or_ratio():
    (summary,) = summarize([row(p, 0, [0.5, 0.5], aligned_logprob=[-2.0, -1.0]) for p in range(2)])
    assert (summary.lambda_, summary.beta_effective, summary.log_ratio) == ((0.5, 0.5), None, None)
    assert summarize([row(beta=None)])[0].beta_effective is None


def test_rewards_differ_from_the_aligned_model_pair_by_pair():
    def rewards(p, lambda_):
        return {"a": p + lambda_, "b": None if p == 0 or lambda_ == 0 else 2.0 * lambda_}

    rows = [row(p, 0, lambda_, rewards=rewards(p, lambda_)) for p in range(12) for lambda_ in (0, 1, 2)]
    reference, aligned, beyond = summarize(rows)
    assert aligned.reward_differences == {}
    for summary, difference in ((reference, -1.0), (beyond, 1.0)):
        found = summary.reward_differences["a"]
        assert (found.mean, found.low, found.high) == (difference,) * 3
    assert set(reference.rewards) == {"a"} and reference.scored == {"a": 12}
    assert beyond.rewards["b"].mean == 4.0 and beyond.scored == {"a": 12, "b": 11}
    assert beyond.reward_differences["b"].mean == 2.0
    assert warnings_of([beyond]) == ["λ = 2: reward b was not computed for 1 of 12 completions"]


def test_warnings_name_what_misleads():
    cut = [row(p, s, 5, finish_reason="length") for p in range(2) for s in range(2)]
    heavy = [row(0, s, 0.5, log_normalizer=-100.0 * s) for s in range(20)]
    fine = [row(p, s, 1) for p in range(2) for s in range(2)]
    lines = warnings_of(summarize(cut + heavy + fine))
    assert len(lines) == 2
    assert lines[0] == "λ = 5: 100% of the completions were cut off (--max-new-tokens)"
    assert lines[1].startswith("λ = 0.5: effective sample size is 5% of the completions")


def test_strengths_share_a_warning():
    def rows(lambda_, ended):
        reasons = ["eos"] * ended + ["length"] * (4 - ended)
        return [row(p, 0, lambda_, finish_reason=reasons[p], rewards={"a": None}) for p in range(4)]

    one, other = warnings_of(summarize(rows(0, 0) + rows(0.5, 1) + rows(1, 4) + [row(9, rewards={"a": 1.0})]))
    assert one == "λ = 0, 0.5: 75% to 100% of the completions were cut off (--max-new-tokens)"
    assert other == "λ = 1: reward a was not computed for 4 of 5 completions"


def test_turns_have_means_of_their_own():
    rows = [
        row(p, 0, x, turn=t, rewards={"a": 10.0 * t + p}) for p in range(3) for x in (0, 1) for t in (0, 1)
    ]
    for summary in summarize(rows):
        assert summary.rewards["a"].mean == 6.0
        assert {turn: e.mean for turn, e in summary.turn_rewards["a"].items()} == {0: 1.0, 1: 11.0}
    assert summarize([r for r in rows if r["turn"] == 0])[0].turn_rewards == {}


def test_the_csv_has_equal_columns_and_blanks_for_the_unknown(tmp_path):
    rows = [
        row(p, 0, lambda_, rewards={'keywords:a|b,"c"': float(p)}) for p in range(2) for lambda_ in (0, 1)
    ]
    write_summary_csv(tmp_path / "summary.csv", summarize(rows))
    with open(tmp_path / "summary.csv", newline="") as file:
        reference, aligned = csv.DictReader(file)
    reward = 'reward_keywords:a|b,"c"'
    assert (reference["lambda"], reference["beta_over_lambda"], aligned["beta_over_lambda"]) == (
        "0",
        "inf",
        "0.1",
    )
    assert (reference[reward], reference[f"{reward}_low"], reference[f"{reward}_high"]) == ("0.5", "0", "1")
    assert (reference[f"{reward}_minus_aligned"], aligned[f"{reward}_minus_aligned"]) == ("0", "")
    assert (reference["n"], reference["ended"], reference["effective_sample_share"]) == ("2", "1", "")
    assert (reference["kl_to_reference"], reference["length"], reference["warning"]) == ("1.5", "2", "")
    with pytest.raises(ValueError, match="no rows to summarize"):
        write_summary_csv(tmp_path / "none.csv", [])
