"""Rows of a sweep: they hold what the contract says and obey the method's identities."""

import dataclasses
import math

import numpy as np
import pytest

from dera_jax import sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.policies.policy import with_params
from dera_jax.results.rows import sort_rows
from dera_jax.rewards.registry import Reward
from tests.support.swept import (
    LAMBDAS,
    SETTINGS,
    TEXTS,
    assert_contains,
    by_key,
)

# What a row is


def test_rows_have_the_fields_and_types_of_the_contract(rows):
    number = (int, float)
    kinds = {
        "prompt_id": int, "sample": int, "seed": int, "turn": int, "rule": str, "lambda": float,
        "beta": type(None), "prompt": str, "completion": str, "prompt_tokens": list, "tokens": list,
        "length": int, "finish_reason": str, "rewards": dict, "logprob": number, "reference_logprob": number,
        "aligned_logprob": number, "sampling_logprob": number, "kl_to_reference": number,
        "log_normalizer": number,
    }  # fmt: skip
    assert len(rows) == len(TEXTS) * 2 * len(LAMBDAS)
    for row in rows:
        assert list(row) == list(kinds)
        assert all(isinstance(row[name], kind) for name, kind in kinds.items())
        assert all(type(i) is int for i in row["tokens"] + row["prompt_tokens"])
    assert {(row["prompt_id"], row["sample"], row["lambda"]) for row in rows} == {
        (prompt, sample, lambda_) for prompt in range(3) for sample in range(2) for lambda_ in LAMBDAS
    }


def test_length_leaves_eos_out_and_finish_reasons_tell_why(rows, policies):
    eos = set(policies[0].eos_ids)
    assert {row["finish_reason"] for row in rows} == {"eos", "length"}
    for row in rows:
        ended = row["finish_reason"] == "eos"
        assert row["length"] == len(row["tokens"]) - ended
        assert (row["tokens"][-1] in eos) == ended
        assert not eos & set(row["tokens"][: row["length"]])
        assert ended or row["length"] == SETTINGS["max_new_tokens"]


def test_completions_are_the_text_of_their_tokens(rows, policies):
    for row in rows:
        ids = row["prompt_tokens"] + row["tokens"][: row["length"]]
        text = policies[0].tokenizer.decode(ids, skip_special_tokens=True)
        assert text == row["prompt"] + row["completion"]
        assert row["prompt_tokens"] == policies[0].tokenizer(row["prompt"]).input_ids


# The method's identities


def test_log_probabilities_obey_the_mixture(rows):
    for row in rows:
        lambda_ = row["lambda"]
        assert row["sampling_logprob"] == pytest.approx(row["logprob"], abs=1e-4)
        mixture = (1 - lambda_) * row["reference_logprob"] + lambda_ * row["aligned_logprob"]
        assert row["logprob"] + row["log_normalizer"] == pytest.approx(mixture, abs=1e-3)


def test_divergence_and_normalizer_have_their_signs(rows):
    for row in rows:
        inside = 0 <= row["lambda"] <= 1
        assert row["log_normalizer"] < 1e-3 if inside else row["log_normalizer"] > -1e-3
        if row["lambda"] in (0, 1):
            own = row["reference_logprob"] if row["lambda"] == 0 else row["aligned_logprob"]
            assert row["logprob"] == own and abs(row["log_normalizer"]) < 1e-4
        # At λ = 0 the two distributions are one.
        assert row["kl_to_reference"] == 0 if row["lambda"] == 0 else row["kl_to_reference"] > 0


@pytest.mark.parametrize("lambda_, model", [(0.0, 0), (1.0, 1)])
def test_endpoints_are_what_one_policy_says_alone(policies, rows, lambda_, model):
    alone = (policies[model],)
    encoded = encode_prompts(alone, as_prompts(TEXTS), 24)
    cells = [Request(prompt, sample, ()) for prompt in encoded for sample in range(2)]
    found = list(complete(alone, cells, DecodeConfig(max_new_tokens=24), 4))
    assert len(found) == len(cells)
    keyed = by_key(rows)
    for completion in found:
        row = keyed[completion.request.prompt.id, completion.request.sample, str(lambda_)]
        assert completion.tokens == row["tokens"] and completion.text == row["completion"]
        own = "reference_logprob" if model == 0 else "aligned_logprob"
        assert row[own] == pytest.approx(float(completion.logprobs.sum()), abs=1e-3)


def test_samples_and_seeds_differ_and_prompts_share_no_noise(policies, rows):
    assert len({tuple(row["tokens"]) for row in rows if row["lambda"] == 0}) == 6
    others = sweep(policies, TEXTS, [0.0], seed=1, **SETTINGS)
    keyed = by_key(rows)
    assert all(keyed[row["prompt_id"], 0, "0.0"]["tokens"] != row["tokens"] for row in others)


def test_prompts_of_one_text_have_noise_of_their_own(policies):
    """Whether they come into a batch together or not."""
    twice = [{"id": name, "prompt": TEXTS[0]} for name in ("first", "second")]
    together = list(sweep(policies, twice, [0.5, 1.0], **SETTINGS))
    alone = [row for prompt in twice for row in sweep(policies, [prompt], [0.5, 1.0], **SETTINGS)]
    assert sort_rows(together) == sort_rows(alone)
    first, second = together[:2], together[2:]
    assert all(a["tokens"] != b["tokens"] for a in first for b in second)


# How tokens are drawn


def test_greedy_top_1_and_the_smallest_nucleus_agree(policies):
    greedy = list(sweep(policies, TEXTS, [0.5], temperature=0.0, **SETTINGS))
    assert all(row["sampling_logprob"] == 0 > row["logprob"] for row in greedy)
    other_seed = list(sweep(policies, TEXTS, [0.5], temperature=0.0, seed=9, **SETTINGS))
    top_1 = list(sweep(policies, TEXTS, [0.5], top_k=1, **SETTINGS))
    nucleus = list(sweep(policies, TEXTS, [0.5], top_p=1e-6, **SETTINGS))
    for rows in (other_seed, top_1, nucleus):
        assert [row["tokens"] for row in rows] == [row["tokens"] for row in greedy]
        assert [row["sampling_logprob"] for row in rows] == pytest.approx([0.0] * 3, abs=1e-4)
    # What is measured is before truncation.
    assert [row["logprob"] for row in nucleus] == pytest.approx([row["logprob"] for row in greedy], abs=1e-4)


def test_truncated_draws_are_more_probable_where_they_are_drawn(policies):
    rows = list(sweep(policies, TEXTS, [0.5, 1.0], num_samples=2, top_k=5, **SETTINGS))
    assert all(row["sampling_logprob"] > row["logprob"] for row in rows)
    assert all(
        row["logprob"] + row["log_normalizer"]
        == pytest.approx((row["reference_logprob"] + row["aligned_logprob"]) / 2, abs=1e-3)
        for row in rows
        if row["lambda"] == 0.5
    )


def test_stop_texts_end_completions_and_are_left_out(pair):
    stops = (" the", "\n")
    free = list(sweep(pair, TEXTS, [0.0, 1.0], num_samples=2, **SETTINGS))
    rows = list(sweep(pair, TEXTS, [0.0, 1.0], num_samples=2, stop=stops, **SETTINGS))
    assert {row["finish_reason"] for row in rows} >= {"stop", "length"}
    # In the order in which they end, these and those.
    for row, other in zip(sort_rows(rows), sort_rows(free), strict=True):
        places = [p for stop in stops if (p := other["completion"].find(stop)) >= 0]
        assert row["tokens"] == other["tokens"][: len(row["tokens"])]
        assert (row["finish_reason"] == "stop") == bool(places)
        assert row["completion"] == (other["completion"][: min(places)] if places else other["completion"])
        assert row["length"] == len(row["tokens"]) - (row["finish_reason"] == "eos")


# Strengths


def test_each_prompt_may_bring_its_own_strength(policies, rows):
    prompts = [
        {"prompt": text, "lambda": value} for text, value in zip(TEXTS, (0.5, 1.0, [1.5]), strict=True)
    ]
    found = list(sweep(policies, prompts, None, num_samples=2, **SETTINGS))
    assert len(found) == 6
    # The last has a strength for each of its turns, which are one.
    assert {(row["prompt_id"], row["lambda"]) for row in found} == {(0, 0.5), (1, 1.0), (2, 1.5)}
    assert_contains(rows, found)


def test_a_prompt_without_its_strength_is_refused(policies, third):
    with pytest.raises(ValueError, match="prompt 1 has no `lambda`"):
        list(sweep(policies, [{"prompt": "a", "lambda": 1.0}, "b"], None, **SETTINGS))
    with pytest.raises(ValueError, match=r"expected a number for each of 2 aligned, found \(1.0,\)"):
        list(sweep((*policies, third), [{"prompt": "a", "lambda": 1.0}], None, **SETTINGS))


def test_each_prompt_may_bring_strengths_of_several_models(policies, third):
    own = [
        {"prompt": text, "lambda": value} for text, value in zip(TEXTS, ("0.5+0.5", "1+-0.25"), strict=False)
    ]
    found = list(sweep((*policies, third), own, None, **SETTINGS))
    assert [row["lambda"] for row in sorted(found, key=lambda row: row["prompt_id"])] == [
        [0.5, 0.5],
        [1, -0.25],
    ]
    all_ = list(sweep((*policies, third), TEXTS[:2], "0.5+0.5,1+-0.25", **SETTINGS))
    assert_contains(all_, found)


def test_two_aligned_policies_take_vectors(policies, third, rows):
    found = list(sweep((*policies, third), TEXTS, [(0.5, 0.5), (1.0, 0.0), (-0.25, 2.0)], **SETTINGS))
    for row in found:
        one, two = row["lambda"]
        first, second = row["aligned_logprob"]
        mixture = (1 - one - two) * row["reference_logprob"] + one * first + two * second
        assert row["logprob"] + row["log_normalizer"] == pytest.approx(mixture, abs=2e-3)
    # Strength 1 + 0 is the first aligned policy, whatever the second.
    keyed = by_key(rows)
    for row in found:
        if row["lambda"] == [1.0, 0.0]:
            assert row["tokens"] == keyed[row["prompt_id"], 0, "1.0"]["tokens"]


@pytest.mark.parametrize(
    "lambdas, message",
    [
        ([math.nan], "finite"),
        ([(0.5, 0.5)], "each of 1 aligned"),
        ([math.inf], "finite"),
        ([1e39], "float32"),
    ],
)
def test_strengths_that_are_none(policies, lambdas, message):
    with pytest.raises(ValueError, match=message):
        list(sweep(policies, TEXTS, lambdas, **SETTINGS))


def test_equal_strengths_are_one_and_arrays_serve(policies, rows):
    found = list(sweep(policies, TEXTS[:1], np.array([0.5, 1.0, 0.5, 1.0]), **SETTINGS))
    assert len(found) == 2
    assert_contains(rows, found)


def test_a_strength_too_large_for_float32_is_named_and_others_take_the_word_of_most_difference(policies):
    with pytest.raises(ValueError, match=r"lambda: 1e\+?39 is too large for float32"):
        list(sweep(policies, TEXTS[:1], [1e39], **SETTINGS))
    far, farthest = sweep(policies, TEXTS[:1], [1e30, 1e38], **SETTINGS)
    assert far["tokens"] == farthest["tokens"]
    assert far["logprob"] == farthest["logprob"] == far["sampling_logprob"] == 0.0


# What a sweep is given


def test_rewards_see_the_prompts_columns(policies):
    seen = {}

    def reward(completions):
        seen.update(completions.columns)
        return [None] * len(completions.completions)

    prompts = [{"prompt": TEXTS[0], "topic": "tales", "id": "x"}, {"prompt": TEXTS[1], "id": "y"}]
    found = list(sweep(policies, prompts, [1.0], [Reward("own", reward)], **SETTINGS))
    assert seen.keys() == {"topic"} and set(seen["topic"]) == {"tales", None}
    assert [row["rewards"] for row in found] == [{"own": None}] * 2
    assert {row["prompt_id"] for row in found} == {"x", "y"}


def test_bad_settings_are_named_before_anything_runs(policies):
    for settings, message in [
        ({"rows": 0}, "rows: expected a whole number, at least 1, got 0"),
        ({"num_samples": 0}, "num_samples"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompts": "one text"}, "expected a list"),
        ({"prompts": [""]}, "empty"),
        ({"prompts": ["word " * 300]}, "prompt 0: .* do not fit the context"),
        ({"rewards": "politeness"}, "unknown reward 'politeness'; known: length:MIN:MAX"),
    ]:
        arguments = {"policies": policies, "prompts": TEXTS, "lambdas": [1.0], **SETTINGS}
        with pytest.raises(ValueError, match=message):
            list(sweep(**arguments | settings))


def test_logits_that_overflow_name_the_model_and_the_token(policies):
    params = dict(policies[1].params)
    params["norm"] = {"scale": params["norm"]["scale"] * 1e38}
    overflowing = dataclasses.replace(with_params(policies[1], params), name="too-large")
    with pytest.raises(ValueError, match=r"too-large: logits are not finite at token 1 .* prompt 0"):
        list(sweep((policies[0], overflowing), TEXTS[:1], [0.0], **SETTINGS))
