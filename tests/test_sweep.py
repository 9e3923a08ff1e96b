"""Sweeps: rows hold what the contract says, obey the method's identities, and grow without changing."""

import dataclasses
import importlib
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import parse_rewards, read_rows, sweep
from dera_jax.configs import DecodeConfig
from dera_jax.encoding import encode_prompts
from dera_jax.generate import Cell, complete
from dera_jax.policies import with_params
from dera_jax.prompts import as_prompts
from dera_jax.realign import mix_logits
from dera_jax.results import read_manifest, row_key, sort_rows
from dera_jax.rewards import Reward
from dera_jax.sharding import Group, parse_mesh
from dera_jax.sweep import Sweep, run_conversations

MODULES = {name: importlib.import_module(f"dera_jax.{name}") for name in ("sweep", "generate")}
"""Whose names in the package are functions."""

TEXTS = ["Once upon a time", "Lily had a dog", "Tom saw"]
LAMBDAS = [-0.5, 0.0, 0.5, 1.0, 1.5]
SETTINGS = {"max_new_tokens": 24, "rows": 4}
"""The same everywhere, so that little is compiled."""


@pytest.fixture(scope="module")
def policies(pair):
    """The pair, with full stops that end a completion: some then end, and some are cut off."""
    full_stop = pair[0].tokenizer.convert_tokens_to_ids(".")
    return tuple(dataclasses.replace(policy, eos_ids=(1, full_stop)) for policy in pair)


@pytest.fixture(scope="module")
def third(policies):
    """Another aligned policy."""
    keys = iter(jax.random.split(jax.random.key(11), 100))
    params = jax.tree.map(
        lambda a: a * (1 + 0.1 * jax.random.normal(next(keys), a.shape)), policies[0].params
    )
    return dataclasses.replace(with_params(policies[0], params), fingerprint="third")


@pytest.fixture(scope="module")
def rows(policies):
    return list(sweep(policies, TEXTS, LAMBDAS, num_samples=2, **SETTINGS))


def by_key(rows):
    keyed = {(row["prompt_id"], row["sample"], str(row["lambda"])): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def assert_contains(rows, others):
    """Every row of `others` is in `rows`, equal in every bit of every field but added rewards."""
    found = by_key(rows)
    for key, row in by_key(others).items():
        there = found[key]
        assert {**there, "rewards": {name: there["rewards"][name] for name in row["rewards"]}} == row


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
    cells = [Cell(prompt, sample, ()) for prompt in encoded for sample in range(2)]
    found = list(complete(alone, cells, DecodeConfig(max_new_tokens=24), 4))
    assert len(found) == len(cells)
    keyed = by_key(rows)
    for completion in found:
        row = keyed[completion.cell.prompt.id, completion.cell.sample, str(lambda_)]
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
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    for row, other in zip(rows, free, strict=True):
        places = [p for stop in stops if (p := other["completion"].find(stop)) >= 0]
        assert row["tokens"] == other["tokens"][: len(row["tokens"])]
        assert (row["finish_reason"] == "stop") == bool(places)
        assert row["completion"] == (other["completion"][: min(places)] if places else other["completion"])
        assert row["length"] == len(row["tokens"])


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
    with pytest.raises(ValueError, match="expected one aligned model, found 2"):
        list(sweep((*policies, third), [{"prompt": "a", "lambda": 1.0}], None, **SETTINGS))


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


def test_a_strength_too_large_for_float32_is_named(policies):
    with pytest.raises(ValueError, match=r"not finite at token 1 of the completion of prompt 0 at λ = 1e38"):
        list(sweep(policies, TEXTS[:1], [1e38], **SETTINGS))


# Rules


def mixture_by_hand(logits, weights, state):
    return jnp.einsum("mrv,rm->rv", logits, weights, precision="highest"), state


def test_a_rule_that_is_the_mixture_says_the_same(policies, rows):
    found = list(sweep(policies, TEXTS, LAMBDAS, num_samples=2, rule=mixture_by_hand, **SETTINGS))
    keyed = by_key(rows)
    for row in found:
        same = keyed[row["prompt_id"], row["sample"], str(row["lambda"])]
        assert row["tokens"] == same["tokens"] and row["rule"].endswith(":mixture_by_hand")
        assert row["log_normalizer"] is None
        for name in (
            "logprob",
            "sampling_logprob",
            "reference_logprob",
            "aligned_logprob",
            "kl_to_reference",
        ):
            assert row[name] == pytest.approx(same[name], abs=1e-3)


def every_third(logits, weights, step):
    """The aligned model's word at every third step, the reference's at the others."""
    return jnp.where((step % 3 == 0)[:, None], logits[1], logits[0]), step + 1


every_third.initial_state = lambda rows: jnp.zeros(rows, jnp.int32)


def test_a_rule_keeps_a_state_for_each_row(pair):
    encoded = encode_prompts(pair, as_prompts(TEXTS), 24)
    # More cells than slots: a slot's next completion starts from the initial state.
    cells = [Cell(prompt, sample, (1.0,)) for prompt in encoded for sample in range(3)]
    found = list(complete(pair, cells, DecodeConfig(max_new_tokens=24), 4, every_third))
    assert len(found) == 9
    for completion in found:
        steps = np.arange(len(completion.tokens))
        expected = completion.model_logprobs[steps, (steps % 3 == 0).astype(int)]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-5)


def not_a_number(logits, weights, state):
    return mix_logits(logits, weights) * jnp.nan, state


def wrong_shape(logits, weights, state):
    return logits, state


def no_state(logits, weights, state):
    return logits[0]


def forgets_state(logits, weights, state):
    return logits[0], None


forgets_state.initial_state = lambda rows: jnp.zeros(rows)


def fails(logits, weights, state):
    raise KeyError("gone")


@pytest.mark.parametrize(
    "rule, message",
    [
        (not_a_number, r"not_a_number: logits are not finite at token 1 of the completion of prompt 0"),
        (wrong_shape, r"wrong_shape: expected logits of shape \(2, 512\), found \(2, 2, 512\)"),
        (no_state, "no_state fails"),
        (forgets_state, "forgets_state: expected a state"),
        (fails, "fails fails on .*KeyError: 'gone'"),
    ],
)
def test_rules_that_are_none_are_named(policies, rule, message):
    with pytest.raises(ValueError, match=message):
        list(sweep(policies, TEXTS[:1], [0.5], rule=rule, **SETTINGS))


# Folders


def test_a_folder_grows_and_changes_nothing(policies, rows, tmp_path):
    run = tmp_path / "run"

    def grow(texts, lambdas, samples, rewards=()):
        given = sweep(policies, texts, lambdas, rewards, out=run, num_samples=samples, **SETTINGS)
        found = list(given)
        assert len(found) == len(texts) * len(lambdas) * samples
        assert_contains(read_rows(run), found)
        return read_rows(run)

    steps = [grow(TEXTS[:1], [0.5], 1)]
    steps.append(grow(TEXTS[:1], [0.0, 0.5, 1.0], 1))
    steps.append(grow(TEXTS[:1], [0.5], 2, "length:1:23"))
    steps.append(grow(TEXTS, LAMBDAS, 2, "length:1:23,keywords:a|the"))
    for before, after in itertools.pairwise(steps):
        assert len(after) > len(before)
        assert_contains(after, before)
    assert_contains(steps[-1], rows)
    for row in steps[-1]:
        words = row["completion"].lower().replace(",", " ").replace(".", " ").replace('"', " ").split()
        assert row["rewards"] == {
            "length:1:23": 0.0 if 1 <= row["length"] <= 23 else -1.0,
            "keywords:a|the": (("a" in words) + ("the" in words)) / 2,
        }
    manifest = read_manifest(run)
    extent = {name: manifest["extent"][name] for name in ("num_prompts", "num_samples", "lambda", "rewards")}
    assert extent == {
        "num_prompts": 3,
        "num_samples": 2,
        "lambda": ["-0.5", "0", "0.5", "1", "1.5"],
        "rewards": ["length:1:23", "keywords:a|the"],
    }
    assert len(manifest["commands"]) == 4


def test_asking_again_for_less_decodes_and_writes_nothing(policies, tmp_path, monkeypatch):
    list(sweep(policies, TEXTS, [0.0, 1.0], "length:1:5", out=tmp_path / "run", **SETTINGS))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(MODULES["generate"].decode, "decode_chunk", None)
    found = list(sweep(policies, TEXTS[:2], [1.0], out=tmp_path / "run", **SETTINGS))
    assert len(found) == 2 and all(row["lambda"] == 1 for row in found)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("taken", [0, 1, 3, 7])
def test_an_interrupted_sweep_completes_to_the_same_rows(policies, rows, tmp_path, monkeypatch, taken):
    monkeypatch.setattr(MODULES["sweep"], "FLUSH_ROWS", 2)
    started = sweep(policies, TEXTS, LAMBDAS, out=tmp_path / "run", num_samples=2, **SETTINGS)
    for _ in range(taken):
        next(started)
    started.close()
    assert_contains(rows, read_rows(tmp_path / "run") if taken else [])
    list(sweep(policies, TEXTS, LAMBDAS, out=tmp_path / "run", num_samples=2, **SETTINGS))
    assert sort_rows(read_rows(tmp_path / "run")) == sort_rows(rows)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_rows_that_ended_before_an_interruption_are_kept(policies, rows, tmp_path, monkeypatch, kind):
    batch_class = MODULES["generate"]._Batch
    finish, ended = batch_class._finished, []

    def interrupted(batch, slot):
        completion = finish(batch, slot)
        if completion and len(ended) == 6:
            raise kind("enough")
        ended.extend([completion] if completion else [])
        return completion

    monkeypatch.setattr(batch_class, "_finished", interrupted)
    with pytest.raises(kind, match="enough"):
        list(sweep(policies, TEXTS, LAMBDAS, out=tmp_path / "run", num_samples=2, **SETTINGS))
    kept = read_rows(tmp_path / "run")
    assert len(kept) == 6
    assert_contains(rows, kept)


def test_a_reward_that_fails_loses_no_row(policies, rows, tmp_path):
    def broken(completions):
        raise ValueError("reward broken: no")

    def even(completions):
        return [float(len(tokens) % 2 == 0) for tokens in completions.tokens]

    out = tmp_path / "run"
    with pytest.raises(ValueError, match="reward broken"):
        list(sweep(policies, TEXTS, LAMBDAS, [Reward("even", broken)], out=out, num_samples=2, **SETTINGS))
    assert_contains(rows, read_rows(out))
    assert read_rows(out)
    list(sweep(policies, TEXTS, LAMBDAS, [Reward("even", even)], out=out, num_samples=2, **SETTINGS))
    found = read_rows(out)
    assert all(row["rewards"] == {"even": float(row["length"] % 2 == 0)} for row in found)
    assert sort_rows([row | {"rewards": {}} for row in found]) == sort_rows(rows)


def test_rewards_see_the_prompts_columns(policies):
    seen = {}

    def reward(completions):
        seen.update(completions.columns)
        return [None] * len(completions.completions)

    prompts = [{"prompt": TEXTS[0], "topic": "tales", "id": "x"}, {"prompt": TEXTS[1], "id": "y"}]
    found = list(sweep(policies, prompts, [1.0], [Reward("own", reward)], **SETTINGS))
    assert seen == {"topic": ["tales", None]}
    assert [row["rewards"] for row in found] == [{"own": None}] * 2
    assert {row["prompt_id"] for row in found} == {"x", "y"}


def test_another_identity_is_refused_and_named(policies, third, tmp_path):
    out = tmp_path / "run"
    list(sweep(policies, TEXTS[:1], [1.0], out=out, **SETTINGS))
    before = (out / "rows.jsonl").read_bytes()
    others = {
        "decode.seed is 0 there and 1 here": {"seed": 1},
        "decode.temperature is 1.0 there and 0.5 here": {"temperature": 0.5},
        "decode.stop": {"stop": ("x",)},
        "decode.max_new_tokens is 24 there and 23 here": {"max_new_tokens": 23},
        "rule is": {"rule": mixture_by_hand},
        "models.aligned": {"policies": (policies[0], third)},
        "prompt 0 is 'Once upon a time' there and 'Lily had a dog' here": {"prompts": TEXTS[1:]},
    }
    for message, changes in others.items():
        arguments = {"policies": policies, "prompts": TEXTS[:1], "lambdas": [1.0], "out": out, **SETTINGS}
        with pytest.raises(ValueError, match=message):
            list(sweep(**arguments | changes))
    assert (out / "rows.jsonl").read_bytes() == before


def test_the_start_of_an_answer_is_part_of_the_prompt(policies, tmp_path):
    prompts = [{"prompt": "Lily had", "prefix": " a dog"}]
    [row] = sweep(policies, prompts, [1.0], out=tmp_path / "run", **SETTINGS)
    assert row["prompt"] == "Lily had a dog"
    with pytest.raises(ValueError, match="'Lily had a dog' there and 'Lily had a cat' here"):
        list(sweep(policies, [prompts[0] | {"prefix": " a cat"}], [1.0], out=tmp_path / "run", **SETTINGS))


def test_beta_is_added_to_rows_without_it_and_never_changed(policies, tmp_path):
    aligned = dataclasses.replace(policies[1], beta=0.1)
    list(sweep(policies, TEXTS[:1], [1.0], out=tmp_path / "run", **SETTINGS))
    assert [row["beta"] for row in read_rows(tmp_path / "run")] == [None]
    list(sweep((policies[0], aligned), TEXTS[:1], [0.5, 1.0], out=tmp_path / "run", **SETTINGS))
    assert [row["beta"] for row in read_rows(tmp_path / "run")] == [0.1, 0.1]
    for beta in (0.2, None):
        with pytest.raises(ValueError, match=rf"beta 0.1, here it is {beta}"):
            list(sweep(policies, TEXTS[:1], [1.0], out=tmp_path / "run", beta=beta, **SETTINGS))


def test_a_manifest_says_how_the_rows_were_made(policies, tmp_path):
    list(sweep(policies, TEXTS[:1], [1.0], out=tmp_path / "run", **SETTINGS))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    provenance = manifest["provenance"]
    assert [model["fingerprint"] for model in provenance["models"]] == [p.fingerprint for p in policies]
    assert provenance["models"][0]["name"] == policies[0].name
    assert jax.devices()[0].device_kind in provenance["device"]
    assert provenance["versions"]["jax"] == jax.__version__
    assert manifest["identity"]["dtype"] == "float32"
    settings = dataclasses.asdict(DecodeConfig(max_new_tokens=24)) | {"stop": []}
    # What was not there at first is left out where it is not used: older folders go on.
    del settings["kv_cache"]
    assert manifest["identity"]["decode"] == settings


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


def make_plan(policies, lambdas, **more):
    prompts = as_prompts(TEXTS)
    return Sweep(
        policies=policies,
        prompts=tuple(prompts),
        encoded=tuple(encode_prompts(policies, prompts, 24)),
        lambdas=tuple((lambda_,) for lambda_ in lambdas),
        rewards=parse_rewards("length:1:9"),
        decode=DecodeConfig(max_new_tokens=24),
        rows=4,
        **more,
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_groups_of_processes_make_the_missing_rows_once(policies, rows, count):
    there = {row_key(row): row for row in rows if row["prompt_id"] == 0 or row["lambda"] in (0.0, 1.5)}
    found = []
    for number in range(count):
        group = Group(parse_mesh(f"data:{jax.device_count()}"), number, count, True)
        plan = make_plan(policies, LAMBDAS, num_samples=2, group=group)
        found += run_conversations(plan, there, lambda rows: None)
    assert len(found) == len(rows) - len(there) == 12
    assert_contains(found, [row for row in rows if row_key(row) not in there])


def test_rows_are_kept_before_they_are_given(policies, monkeypatch):
    """What a consumer has seen is on disk."""
    monkeypatch.setattr(MODULES["sweep"], "FLUSH_ROWS", 3)
    plan = make_plan(policies, [0.0, 1.0])
    kept = []
    for row in run_conversations(plan, {}, kept.extend):
        assert row in kept and row["rewards"].keys() == {"length:1:9"}
    assert len(kept) == 6
