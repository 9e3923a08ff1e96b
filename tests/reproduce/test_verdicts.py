"""Verdicts on synthetic experiments whose answers are known: each condition of a claim decides one of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dera_jax.analysis.estimates import Estimate
from dera_jax.experiments.declare import Experiment, Step
from scripts.reproduce import claims, questions, spread
from scripts.reproduce import evidence as ev
from scripts.reproduce import quantities as qu
from scripts.reproduce.decomposition import PARTS, QUANTITIES, decompose
from scripts.reproduce.subjects import Subject
from scripts.reproduce.verdicts import AGREES, CANNOT, DISAGREES, UNDECIDED, equivalence, fall, rise

EXPERIMENT = Experiment(
    name="made", title="made", reference="r", training=Step("train.rlhf", "", {}), beta=0.5, strengths=(0.0, 1.0),
    decoding={}, aligned_model="a",
)  # fmt: skip
STRENGTHS = (0.25, 0.5, 0.75, 1.5, 2.0, 5.0)
PROMPTS = 40
SEEDS = 3


def quantity(name):
    return lambda row: row[name]


def made_rows(strength, seed, spread_of_seeds, rng, **means):
    """Rows of a training: every figure has its mean, a deviation of the training, and one of each prompt."""
    rows = [{"prompt_id": p, "sample": 0, "lambda": strength} for p in range(PROMPTS)]
    for name, mean in means.items():
        level = mean + (spread_of_seeds * rng.normal() if strength else 0.0)
        for row in rows:
            row[name] = level + 0.02 * np.sin(7 * row["prompt_id"] + strength)
    for row in rows:
        row.update(kl_to_reference=row.pop("kl"), length=row.pop("tokens"))
    return rows


def means_at(strength, **changed):
    """What everything is at a strength, if nothing is wrong: reward and KL rise, quality falls."""
    plain = {"reward": 0.6 * math.tanh(strength), "kl": 0.1 + strength, "tokens": 50.0 - strength,
             "likelihood": -1.0 - 0.2 * strength}  # fmt: skip
    return plain | {name: plain[name] + by for name, by in changed.items()}


def subject(
    dera=None, retrained=None, combined=None, seeds=SEEDS, noise=0.0, accuracies=None, means=means_at
):
    """An experiment; `dera` and the others give what is added to which figure at a strength."""
    rng = np.random.default_rng(0)

    def way(change, strengths):
        return {
            (s, seed): made_rows(s, seed, noise, rng, **means(s, **(change(s) if change else {})))
            for s in strengths
            for seed in range(seeds)
        }

    ours, theirs = way(dera, (0.0, *STRENGTHS, 1.0)), way(retrained, STRENGTHS)
    for seed in range(seeds):
        for s in (0.0, 1.0):
            theirs[s, seed] = ours[s, seed]
    weights = {at: rows for at, rows in way(combined, STRENGTHS).items() if at[1] == 0} if combined else {}
    found = ev.Evidence(EXPERIMENT, ours, theirs, weights, [], accuracies or {})
    quality = {"likelihood": quantity("likelihood")}
    return Subject(found, quantity("reward"), quality, quantity("reward"), "reward")


def ask(title, one):
    return next(claim for claim in claims.CLAIMS if claim.title == title).ask(one)


def only(side, **changed):
    low, high = questions.SIDES[side]
    return lambda s: changed if low < s < high and s != 1 else {}


@pytest.mark.parametrize(
    ("side", "name", "large", "small", "noise"),
    [
        *((side, f"reward, {side}", {"reward": 0.2}, {"reward": 0.02}, 0.15) for side in questions.SIDES),
        ("λ < 1", "KL, λ < 1", {"kl": 0.6}, {"kl": 0.02}, 0.3),
        ("1 < λ ≤ 2", "KL, 1 < λ ≤ 2", {"kl": 2.0}, {"kl": 0.05}, 1.0),
        ("λ < 1", "length, λ < 1", {"tokens": 6.0}, {"tokens": 0.5}, 4.0),
        ("1 < λ ≤ 2", "length, 1 < λ ≤ 2", {"tokens": -6.0}, {"tokens": -0.5}, 4.0),
    ],
)
def test_agreement_is_equivalence_within_the_margin(side, name, large, small, noise):
    """A difference beyond the margin disagrees, one within it agrees, one that trainings leave open is undecided."""
    assert ask(name, subject(dera=only(side, **large))).verdict == DISAGREES
    assert ask(name, subject(dera=only(side, **small))).verdict == AGREES
    (figure, by), *_ = small.items()
    assert ask(name, subject(dera=only(side, **small), noise=noise)).verdict == UNDECIDED
    # Elsewhere it is no matter of this side.
    other = next(each for each in questions.SIDES if each != side)
    assert ask(name, subject(dera=only(other, **{figure: by}))).verdict == AGREES


def test_where_alignment_moved_nothing_nothing_can_be_said():
    def flat(strength, **changed):
        return means_at(strength, **changed) | {"reward": 0.0}

    still = subject(means=flat)
    moved_by_reward = {claim.title for claim in claims.CLAIMS} - {"text falls apart"}
    assert {ask(title, still).verdict for title in moved_by_reward} == {CANNOT}


def test_an_alignment_that_went_too_far_has_moved_the_reward():
    """At λ = 1 it is back where it began, and between it is not."""

    def hill(strength, **changed):
        return means_at(strength, **changed) | {"reward": 4 * strength * (1 - strength)}

    assert subject(means=hill).moved


def test_a_claim_without_rows_says_nothing():
    empty = Subject(ev.Evidence(EXPERIMENT, {}, {}, {}, []), quantity("reward"), {}, quantity("reward"), "")
    for claim in claims.CLAIMS:
        assert claim.ask(empty).verdict == CANNOT, claim.title


def test_the_order_of_strengths():
    turned = subject(dera=lambda s: {"reward": -1.2 * math.tanh(s)} if s != 1 and s else {})
    assert ask("order of strengths", turned).verdict == DISAGREES
    assert ask("order of strengths", subject()).verdict == AGREES


def test_the_choice_is_judged_by_what_retraining_there_loses():
    """DeRa best at 2: the retrained models agree, or have lost nearly all of it there."""

    def at_two(s):
        return {"reward": 0.5 if s == 2 else 0.0}

    assert ask("choice of strength", subject(dera=at_two, retrained=at_two)).verdict == AGREES

    def at_half(s):
        return {"reward": 1.0 if s == 0.5 else 0.0}

    wrong = ask("choice of strength", subject(dera=at_two, retrained=at_half))
    assert wrong.verdict == DISAGREES and "λ = 2" in wrong.finding and "0.5" in wrong.finding


def test_a_better_strength_is_confirmed_by_retraining_there():
    """DeRa says that λ = 2 is better than 1; retraining there is, is not, or there is nothing to retrain."""

    def at_two(by):
        return lambda s: {"reward": by if s == 2 else 0.0}

    title = "better than the base"
    assert ask(title, subject(dera=at_two(0.5), retrained=at_two(0.3))).verdict == AGREES
    assert ask(title, subject(dera=at_two(0.5), retrained=at_two(-0.5))).verdict == DISAGREES
    assert ask(title, subject(dera=at_two(0.5), retrained=at_two(-0.1), noise=0.3)).verdict == UNDECIDED
    assert ask(title, subject(dera=lambda s: {"reward": 0.9 if s == 1 else 0.0})).verdict == CANNOT


@pytest.mark.parametrize(
    ("way", "title"), [("dera", "quality falls, DeRa"), ("retrained", "quality falls, retrained")]
)
def test_quality_falls_or_it_does_not(way, title):
    assert ask(title, subject()).verdict == AGREES
    up = {way: lambda s: {"likelihood": 0.4 * s}}
    assert ask(title, subject(**up)).verdict == DISAGREES
    level = {way: lambda s: {"likelihood": 0.2 * s - (0.01 if s else 0)}}  # a fall too small to matter
    assert ask(title, subject(**level)).verdict == DISAGREES


def test_text_falls_apart_or_it_does_not():
    assert ask("text falls apart", subject()).verdict == AGREES
    assert ask("text falls apart", subject(dera=lambda s: {"likelihood": 0.3 * s})).verdict == DISAGREES


@pytest.mark.parametrize("side", ["1 < λ ≤ 2", "λ > 2"])
def test_logits_over_weights(side):
    title = f"logits over weights, {side}"
    assert ask(title, subject(combined=only(side, reward=-0.1))).verdict == AGREES
    assert ask(title, subject(combined=only(side, reward=0.1))).verdict == DISAGREES
    assert ask(title, subject()).verdict == CANNOT


def test_weights_as_good_as_logits_below_one():
    title = "logits and weights, λ < 1"
    assert ask(title, subject(combined=only("λ < 1", reward=0.01))).verdict == AGREES
    for by in (0.2, -0.2):
        assert ask(title, subject(combined=only("λ < 1", reward=by))).verdict == DISAGREES
    assert ask(title, subject()).verdict == CANNOT


def test_pair_accuracy():
    def accuracies(gap, half):
        found = {way: {s: Estimate(0.6 + by, 0.6 + by - half, 0.6 + by + half) for s in (0.5, 2.0)}
                 for way, by in (("DeRa", gap), ("retrained", 0.0))}  # fmt: skip
        return found

    title = "pair accuracy, λ < 1"
    assert ask(title, subject(accuracies=accuracies(0.0, 0.005))).verdict == AGREES
    assert ask(title, subject(accuracies=accuracies(0.1, 0.005))).verdict == DISAGREES
    assert ask(title, subject(accuracies=accuracies(0.0, 0.05))).verdict == UNDECIDED


def test_a_single_training_is_marked_and_several_are_not():
    assert ask("reward, λ < 1", subject(seeds=1)).single
    cell = ask("reward, λ < 1", subject(seeds=2))
    assert not cell.single and not cell.sign.endswith("¹")


def test_three_trainings_count_as_three():
    """The interval of trainings is Student's: with no other noise that of a t-test of unequal variances."""
    rng = np.random.default_rng(1)
    levels = rng.normal(size=(2, 3))

    def rows(values):
        return {(0.5, seed): [{"prompt_id": p, "sample": 0, "lambda": 0.5, "x": value} for p in range(20)]
                for seed, value in enumerate(values)}  # fmt: skip

    found = ev.Evidence(EXPERIMENT, rows(levels[0]), rows(levels[1]), {}, [])
    ours = spread.gap(found, quantity("x"), [0.5])
    test = stats.ttest_ind(levels[0], levels[1], equal_var=False).confidence_interval(0.95)
    assert (ours.estimate.low, ours.estimate.high) == pytest.approx((test.low, test.high))
    # Prompts alone: a paired t-test.
    shared = rng.normal(size=20)
    one, other = (
        {(0.5, 0): [{"prompt_id": p, "sample": 0, "lambda": 0.5, "x": v} for p, v in enumerate(values)]}
        for values in (shared + rng.normal(size=20), shared)
    )
    ours = spread.gap(ev.Evidence(EXPERIMENT, one, other, {}, []), quantity("x"), [0.5])
    values = [[row["x"] for row in rows[0.5, 0]] for rows in (one, other)]
    test = stats.ttest_rel(*values).confidence_interval(0.95)
    assert (ours.estimate.low, ours.estimate.high) == pytest.approx((test.low, test.high)) and ours.single


def test_intervals_against_margins():
    def at(low, high):
        return Estimate((low + high) / 2, low, high)

    assert equivalence(at(-0.05, 0.05), 0.1) == AGREES
    assert equivalence(at(-0.15, 0.05), 0.1) == UNDECIDED
    assert equivalence(at(-0.35, -0.15), 0.1) == equivalence(at(0.15, 0.35), 0.1) == DISAGREES
    assert equivalence(at(math.nan, math.nan), 0.1) == CANNOT == equivalence(at(0, 0), 0.0)
    assert rise(at(0.1, 0.3)) == fall(at(-0.3, -0.1)) == AGREES
    assert rise(at(-0.1, 0.3)) == UNDECIDED and rise(at(-0.3, -0.1)) == DISAGREES
    assert rise(at(0.01, 0.03), least=0.05) == fall(at(-0.03, -0.01), least=0.05) == DISAGREES


def test_the_parts_sum_to_the_gap_and_tell_what_was_put_in():
    """A chain of one token: Eq. 5 is DeRa, so that nothing is per token; the optimum is a closed form."""
    beta, p, aligned = 0.5, 0.3, 0.6

    def rows(share, strength, kl, log_z=0.0, ratio=None):
        found = []
        for prompt in range(4):
            for sample in range(100):
                hit = sample < round(100 * share)
                ratios = ratio or (0.0, 0.0)
                found.append({
                    "prompt_id": prompt, "sample": sample, "lambda": strength, "kl_to_reference": kl, "length": 1,
                    "rewards": {"length": float(hit) - 1}, "log_normalizer": log_z, "reference_logprob": 0.0,
                    "aligned_logprob": ratios[0] if hit else ratios[1], "finish_reason": "eos",
                })  # fmt: skip
        return found

    lambda_ = 2.0
    weights = [p ** (1 - lambda_) * aligned**lambda_, (1 - p) ** (1 - lambda_) * (1 - aligned) ** lambda_]
    share, log_z = weights[0] / sum(weights), math.log(sum(weights))
    ratio = math.log(aligned / p), math.log((1 - aligned) / (1 - p))
    kl = lambda_ * (share * ratio[0] + (1 - share) * ratio[1]) - log_z
    dera = {(0.0, 0): rows(p, 0.0, 0.0), (lambda_, 0): rows(share, lambda_, kl, log_z, ratio)}
    found = ev.Evidence(replace(EXPERIMENT, beta=beta), dera, {(lambda_, 0): rows(0.5, lambda_, 1.0)}, {}, [])
    (parts,) = decompose(Subject(found, qu.reward("length"), {}, qu.kl, "", has_optimum=True))
    s = beta / lambda_
    best = 1 - (1 - p) * math.exp(-1 / s) / (p + (1 - p) * math.exp(-1 / s))
    exact = round(100 * share) / 100
    of_reward, of_kl = parts.parts("reward"), parts.parts("KL")
    assert of_reward[PARTS[0]] == pytest.approx(0.0, abs=1e-12) and of_kl[PARTS[0]] == pytest.approx(
        0.0, abs=0.02
    )
    assert of_reward[PARTS[1]] == pytest.approx(exact - best) and of_reward[PARTS[2]] == pytest.approx(
        best - 0.5
    )
    for name in QUANTITIES:
        assert sum(parts.parts(name).values()) == pytest.approx(parts.total[name].estimate.mean, abs=1e-12)


def test_weighted_means_are_plain_ones_where_all_weights_are_one():
    """At λ = 0 all weights are 1, those of completions that were cut off too."""
    rows = [
        {"prompt_id": n % 5, "sample": n, "lambda": 0.0, "x": float(n % 3 == 1), "finish_reason": reason,
         "logprob": -1.0, "sampling_logprob": -1.0, "log_normalizer": 0.0}
        for n, reason in enumerate(["stop", "length", "eos"] * 10)
    ]  # fmt: skip
    assert ev.weighted(rows, quantity("x")).mean == pytest.approx(ev.mean(rows, quantity("x")).mean)
