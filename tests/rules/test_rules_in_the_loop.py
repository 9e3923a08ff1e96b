"""Every rule where it is used: shared rows, drafts, one program for all dials, the command."""

import json

import pytest

from dera_jax import generate, sweep
from dera_jax.decoding import device_loop
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.rules.catalogue import KNOWN

TEXTS, SETTINGS = ["Once upon a time", "Tom has a dog."], {"max_new_tokens": 24, "seed": 3}
RULES = [name for name in KNOWN if name != "tilt"] + [
    "kl-budget:nats=0.05+plausible",
    "kl-budget:nats=1,response=0.5",
    "ramp+power:p=-1",
]


def keyed(rows):
    return {(r["prompt_id"], r["sample"], str(r["lambda"])): r for r in rows}


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_strengths_share_are_the_same(pair, rule):
    shared, own = (
        keyed(sweep(pair, TEXTS, "0,0.5,1", rule=rule, draw=draw, num_samples=2, rows=2, **SETTINGS))
        for draw in (MixtureDraw(), MixtureDraw(share=False))
    )
    assert len(shared) == 12
    for key, row in shared.items():
        assert row["tokens"] == own[key]["tokens"] and row["rule"].startswith(rule.split("+")[0])
    at_zero = [row for row in own.values() if row["lambda"] == 0]
    if rule not in ("contrastive", "plausible", "kl-budget:nats=0.05+plausible"):
        assert all(row["kl_to_reference"] < 1e-3 for row in at_zero)


@pytest.mark.parametrize("rule", ["ramp:tokens=4+power", "kl-budget:nats=0.2,response=1+plausible"])
def test_drafts_change_nothing(pair, rule):
    plain, drafted = (
        generate(pair, TEXTS, 0.9, rule=rule, draw=MixtureDraw(draft=draft), **SETTINGS)
        for draft in ("none", "ngram")
    )
    assert [done.tokens for done in plain] == [done.tokens for done in drafted]


def test_models_do_not_draft_for_other_rules(pair):
    with pytest.raises(ValueError, match="power:p=1 is at no strength one of the models"):
        generate(pair, TEXTS, 0.9, rule="power", draw=MixtureDraw(draft="reference"), **SETTINGS)


def test_what_a_response_may_spend_is_never_exceeded(pair):
    for done in generate(pair, TEXTS, 3.0, rule="kl-budget:nats=1,response=0.5", num_samples=4, **SETTINGS):
        assert done.kl_to_reference.sum() < 0.5 + 1e-3


def test_other_dials_compile_nothing(pair):
    def run(tokens):
        return generate(
            pair, TEXTS, 0.8, rule=f"ramp:tokens={tokens}+plausible:alpha=0.0{tokens}", **SETTINGS
        )

    run(3)
    before = device_loop.decode_chunk._cache_size()
    texts = [[done.text for done in run(tokens)] for tokens in (4, 9)]
    assert device_loop.decode_chunk._cache_size() == before and texts[0] != texts[1]


def test_a_sweep_names_its_rule_and_takes_no_other(tmp_path, pair):
    list(sweep(pair, TEXTS, "1", rule="plausible", out=tmp_path / "run", **SETTINGS))
    rows = [json.loads(line) for line in (tmp_path / "run/rows.jsonl").read_text().splitlines()]
    assert {row["rule"] for row in rows} == {"plausible:alpha=0.1"}
    assert all(row["log_normalizer"] is None for row in rows)
    with pytest.raises(ValueError, match="rule"):
        list(sweep(pair, TEXTS, "1", rule="plausible:alpha=0.2", out=tmp_path / "run", **SETTINGS))


def test_a_strength_that_a_rule_cannot_take_is_refused_before_anything_is_made(tmp_path, pair):
    with pytest.raises(ValueError, match="power:p=1 averages"):
        list(sweep(pair, TEXTS, "0,1.5", rule="power", out=tmp_path / "run", **SETTINGS))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="averages"):
        generate(pair, TEXTS, 1.5, rule="power", **SETTINGS)
