"""Drafts change how a text is computed, not the text: against the plain loop, whoever drafts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policies, load_policy
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts, load_prompts
from dera_jax.decoding import speculation
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import MixtureDraw, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.drafters import NGRAM, acceptance_bounds
from dera_jax.decoding.request import Request, shape_of
from dera_jax.decoding.speculative_batch import SpeculativeBatch
from dera_jax.devices.usage import Usage
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import with_params
from dera_jax.rules.rule import linear_rule

CONFIG = DecodeConfig(max_new_tokens=48, seed=3)
CHANGED = 1e-3
"""Of the tokens, those that rounding may change."""
WORDS = "dog cat boy girl bird king tree boat ball bear fish frog duck bee cow pig".split()
APART = 1e-4
"""Nats between the figures of a token that is the same."""


@pytest.fixture(scope="module")
def toy():
    return load_policies()


def moved(policy, size, seed=0):
    """Returns a policy near another: every matrix disturbed."""
    noise = np.random.default_rng(seed)
    return with_params(
        policy,
        jax.tree.map(
            lambda a: a * (1 + size * noise.standard_normal(a.shape).astype(a.dtype)) if a.ndim > 1 else a,
            policy.params,
        ),
    )


def requests_of(policies, count=6, samples=2, strengths=((0.5,), (0.9,))):
    prompts = encode_prompts(policies, load_prompts("toy", count), 64)
    return [Request(p, sample, s) for p in prompts for sample in range(samples) for s in strengths]


def by_key(completions):
    return {done.request.key: done for done in completions}


def check(policies, requests, config=CONFIG, rows=4, rule=linear_rule, changed=CHANGED, apart=APART, **draft):
    """Compares all completions with those of the plain loop, and returns what was kept."""
    usage = Usage()
    plain = by_key(complete_unshared(policies, requests, config, rows, rule))
    found = by_key(MixtureDraw(**draft)(policies, requests, config, rows, rule, usage))
    assert found.keys() == plain.keys()
    total = sum(len(done.tokens) for done in plain.values())
    other = 0
    for key, done in found.items():
        expected = plain[key]
        pairs = zip(done.tokens, expected.tokens, strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(expected.tokens))
        other += len(expected.tokens) - same
        if same == len(expected.tokens):
            assert (done.text, done.finish_reason) == (expected.text, expected.finish_reason)
        for name in ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference", "log_normalizers"):
            ours, theirs = (getattr(each, name) for each in (done, expected))
            if theirs is not None:
                np.testing.assert_allclose(ours[:same], theirs[:same], atol=apart, err_msg=name)
    print(
        f"{draft}: {other} of {total} tokens behind a changed one; {usage.acceptance:.2f} of the drafts kept"
    )
    assert other <= changed * total
    return usage


@pytest.mark.parametrize("length", [1, 2, 4, 8])
@pytest.mark.parametrize("draft", ["reference", "aligned", "ngram"])
def test_the_text_is_the_plain_loops(toy, draft, length):
    """In slots that are refilled while their neighbours go on."""
    usage = check(toy, requests_of(toy), draft=draft, draft_length=length)
    assert usage.drafts and (draft == "ngram" or usage.acceptance > 0.8)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
        {"stop": (".",)},
        {"max_new_tokens": 17},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 5])
def test_however_it_is_drawn(toy, settings, rows):
    check(toy, requests_of(toy, 3), replace(CONFIG, **settings), rows, draft="reference")


def bigram(policy, seed):
    """Returns a policy whose logits depend on the last token only: no block adds anything."""
    noise = np.random.default_rng(seed)

    def of(path, value):
        if path.endswith(("attention.out.kernel", "feed_forward.down.kernel")):
            return np.zeros_like(value)
        if path.startswith("embed"):
            return noise.standard_normal(value.shape).astype(value.dtype)
        return np.asarray(value)

    return with_params(policy, unflatten({path: of(path, v) for path, v in flatten(policy.params).items()}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft", ["reference", "ngram"])
def test_bigrams_are_the_same_to_the_token(toy, draft, temperature):
    """Nothing rounds otherwise than in the plain loop but the head."""
    one = bigram(toy[0], 1)
    pair = one, moved(one, 0.03)
    config = replace(CONFIG, temperature=temperature)
    usage = check(pair, requests_of(pair), config, 3, draft=draft, draft_length=4, changed=0)
    assert draft == "ngram" or usage.acceptance > 0.3


def test_acceptance_lies_between_its_bounds(toy):
    """(1 − TV)/(1 + TV) ≤ acceptance ≤ 1 − TV; blocks of words are drawn first, for which .05 are granted."""
    pair = toy[0], moved(toy[0], 0.2)
    requests = requests_of(pair, 12, 4, ((0.5,), (1.0,)))
    made = list(complete_unshared(pair, requests, CONFIG, 32))
    for number, draft in enumerate(("reference", "aligned")):
        usage = Usage()
        list(MixtureDraw(draft=draft)(pair, requests, CONFIG, 32, usage=usage))
        logprobs, theirs = (
            np.concatenate(each)
            for each in zip(*((c.logprobs, c.model_logprobs[:, number]) for c in made), strict=True)
        )
        low, high = acceptance_bounds(logprobs, theirs)
        error = 4 * (0.25 / usage.drafts) ** 0.5
        print(f"{draft}: {low:.3f} ≤ {usage.acceptance:.3f} ≤ {high:.3f}, of {usage.drafts} drafts")
        assert low - 0.05 - error <= usage.acceptance <= high + error


def test_a_strength_that_is_the_drafter_keeps_every_draft(toy):
    usage = check(toy, requests_of(toy, 3, strengths=((0.0,),)), draft="reference")
    # Rounding may throw one away.
    assert usage.drafts_accepted >= usage.drafts - 2


def windowed(policies, size):
    own = tuple((size, 0)[n % 2] for n in range(policies[0].config.num_layers))
    return tuple(replace(p, config=replace(p.config, windows=own)) for p in policies)


@pytest.mark.parametrize("size", [7, 24])
def test_windows_come_round_at_each_rows_pace(toy, size):
    """Of fewer places than a chunk has tokens, and of more."""
    pair = windowed(toy, size)
    check(pair, requests_of(pair, 3), draft="aligned")


def test_caches_in_eight_bits(toy):
    """Those not in them yet are bfloat16, which rounding may move by one of its steps."""
    config = replace(CONFIG, kv_cache="int8", max_new_tokens=15)
    check(toy, requests_of(toy, 3), config, draft="aligned", changed=0.01, apart=5e-3)


def test_several_aligned_models(toy):
    three = (*toy, moved(toy[1], 0.1))
    requests = requests_of(three, 3, strengths=((0.2, 0.7), (0.1, 0.8)))
    # The one of most weight drafts.
    assert check(three, requests, draft="aligned").acceptance > 0.7


def every_third(logits, weights, step, context):
    """The aligned model's word at every third step, the mixture's at the others, none twice in a row."""
    mixed = jnp.einsum("mrv,rm->rv", logits, weights)
    words = jnp.arange(mixed.shape[-1])
    mixed = jnp.where((step % 3 == 0)[:, None], logits[1], mixed)
    return jnp.where(words == context.token[1][:, None], -1e9, mixed), step + 1


every_third.initial_state = lambda rows: jnp.zeros(rows, jnp.int32)
every_third.takes_context = True


def test_a_rule_has_the_state_of_what_was_kept(toy):
    check(toy, requests_of(toy, 3), rule=every_third, draft="ngram", draft_length=3)


def test_rows_with_settings_of_their_own(toy):
    configs = replace(CONFIG, temperature=0.5, seed=9), replace(CONFIG, top_k=5, max_new_tokens=11), None
    requests = [replace(r, config=configs[n % 3]) for n, r in enumerate(requests_of(toy, 3, 1))]
    check(toy, requests, draft="reference")


def test_adapters_on_one_base(toy):
    base = toy[0]
    adapted = with_lora(base, 4, 8.0)
    params = flatten(adapted.params)
    noise = np.random.default_rng(0)
    changed = {
        path: v + noise.normal(0, 0.02, v.shape).astype(v.dtype) if path.endswith("lora_b") else v
        for path, v in params.items()
    }
    pair = base, with_params(adapted, unflatten(changed))
    for draft in ("reference", "ngram"):
        check(pair, requests_of(pair, 3), draft=draft)


def test_nothing_is_compiled_for_strengths_prompts_or_lengths(toy):
    def compiled(requests):
        before = speculation.decode_drafted_chunk._cache_size()
        list(MixtureDraw(draft="reference")(toy, requests, CONFIG, 4))
        return speculation.decode_drafted_chunk._cache_size() - before

    first = requests_of(toy, 2)
    compiled(first)
    other = [replace(r, lambda_=(0.1 * n,), attempt=n) for n, r in enumerate(first)]
    assert compiled(other) == 0


def test_auto_drafts_where_it_pays_and_says_the_same(toy, monkeypatch):
    """What chunks take is made up: first so that drafts pay, then so that they do not."""
    requests = requests_of(toy, 12, strengths=((0.9,),))
    plain = by_key(complete_unshared(toy, requests, CONFIG, 4))

    def made(gain):
        usage = Usage()
        batch = SpeculativeBatch(toy, shape_of(requests[0]), CONFIG, 4, usage=usage, draft="auto", length=4)
        paces = batch.choice.paces = type(batch.choice.paces)()
        paces.plain.first = paces.plain.best = 1.0
        monkeypatch.setattr(type(paces.plain), "add", lambda self, seconds: None)
        for drafter in (NGRAM, 0, 1):
            paces.drafted[drafter].first = paces.drafted[drafter].best = 1.0 / gain
        batch.submit(requests)
        found = {}
        while batch.busy:
            found |= by_key(batch.step())
        for key, done in found.items():
            assert done.tokens == plain[key].tokens
        return usage

    assert made(4.0).drafts > 0
    assert made(0.1).drafts == 0


def test_several_processes_do_not_choose_by_their_clocks(toy, monkeypatch):
    """Each would run a program of its own, and all would wait for one another."""
    shape = shape_of(requests_of(toy, 1)[0])
    for count, kind in ((1, SpeculativeBatch), (2, Batch)):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        assert type(MixtureDraw(draft="auto").batch(toy, shape, CONFIG, 2)) is kind
        assert type(MixtureDraw(draft="ngram").batch(toy, shape, CONFIG, 2)) is SpeculativeBatch


@pytest.mark.parametrize(
    ("draft", "rule", "said"),
    [
        ("reference", every_third, "rule .*every_third is at no strength one of the models; expected ngram"),
        ("aligned", every_third, "got aligned"),
    ],
)
def test_drafters_that_are_not_there(toy, draft, rule, said):
    with pytest.raises(ValueError, match=said):
        list(MixtureDraw(draft=draft)(toy, requests_of(toy, 1), CONFIG, 2, rule))


def test_one_model_alone_has_no_aligned_drafter(toy):
    requests = requests_of(toy[:1], 1, strengths=((),))
    with pytest.raises(ValueError, match="one model alone, got aligned"):
        list(MixtureDraw(draft="aligned")(toy[:1], requests, CONFIG, 2))
    check(toy[:1], requests, draft="ngram")


@pytest.mark.data("stories260K")
def test_ten_thousand_tokens_of_stories(data):
    reference = load_policy(str(data / "stories260K"))
    pair = reference, moved(reference, 0.05)
    texts = encode_prompts(pair, as_prompts([f"Once upon a time, there was a {w}" for w in WORDS]), 160)
    requests = [Request(p, sample, (0.5,)) for p in texts for sample in range(4)]
    check(pair, requests, replace(CONFIG, max_new_tokens=160), 16, draft="reference")


@pytest.mark.parametrize("length", [0, -1, 65, 2.5])
def test_drafts_of_no_length(length):
    with pytest.raises(ValueError, match="draft_length: expected"):
        MixtureDraw(draft="ngram", draft_length=length)
