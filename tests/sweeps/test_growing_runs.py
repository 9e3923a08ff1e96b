"""A run's folder grows, is interrupted and refuses others; the rows are the same whatever happens."""

import dataclasses
import itertools
import json

import jax
import pytest

from dera_jax import parse_rewards, read_rows, sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts
from dera_jax.decoding import shared_batch
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.finished import completion_of
from dera_jax.devices.mesh import Group, parse_mesh
from dera_jax.results.manifests import read_manifest
from dera_jax.results.rows import row_key, sort_rows
from dera_jax.rewards.registry import Reward
from dera_jax.sweeps import run as sweeps_run
from dera_jax.sweeps.plan import SweepPlan
from dera_jax.sweeps.run import run_conversations
from tests.support.swept import (
    LAMBDAS,
    SETTINGS,
    TEXTS,
    assert_contains,
    mixture_by_hand,
)


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
    monkeypatch.setattr(Batch, "step", None)
    found = list(sweep(policies, TEXTS[:2], [1.0], out=tmp_path / "run", **SETTINGS))
    assert len(found) == 2 and all(row["lambda"] == 1 for row in found)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("taken", [0, 1, 3, 7])
def test_an_interrupted_sweep_completes_to_the_same_rows(policies, rows, tmp_path, monkeypatch, taken):
    monkeypatch.setattr(sweeps_run, "FLUSH_ROWS", 2)
    started = sweep(policies, TEXTS, LAMBDAS, out=tmp_path / "run", num_samples=2, **SETTINGS)
    for _ in range(taken):
        next(started)
    started.close()
    assert_contains(rows, read_rows(tmp_path / "run") if taken else [])
    list(sweep(policies, TEXTS, LAMBDAS, out=tmp_path / "run", num_samples=2, **SETTINGS))
    assert sort_rows(read_rows(tmp_path / "run")) == sort_rows(rows)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_rows_that_ended_before_an_interruption_are_kept(policies, rows, tmp_path, monkeypatch, kind):
    ended = []

    def interrupted(*told):
        ended.append(told)
        if len(ended) > 6:
            raise kind("enough")
        return completion_of(*told)

    monkeypatch.setattr(shared_batch, "completion_of", interrupted)
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


def make_plan(policies, lambdas, **more):
    prompts = as_prompts(TEXTS)
    return SweepPlan(
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
    monkeypatch.setattr(sweeps_run, "FLUSH_ROWS", 3)
    plan = make_plan(policies, [0.0, 1.0])
    kept = []
    for row in run_conversations(plan, {}, kept.extend):
        assert row in kept and row["rewards"].keys() == {"length:1:9"}
    assert len(kept) == 6
