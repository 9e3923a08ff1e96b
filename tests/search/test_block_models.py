"""Block by block searches on models as users have them: windows, adapters, eight bits, rules with a state."""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import generate, load_policies, score
from dera_jax.data.prompts import load_prompts
from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.rules.rule import linear_rule
from dera_jax.search import roll_out
from dera_jax.search.blocks import beams, blocks, rejection
from dera_jax.search.lookahead import lookahead
from tests.support.on_meshes import adapted_pair
from tests.support.searched import APART, CONFIG, check_driver, requests_of


@pytest.fixture(scope="module")
def toy():
    return load_policies()


def windowed(policies, size):
    own = tuple((size, 0)[n % 2] for n in range(policies[0].config.num_layers))
    return tuple(replace(p, config=replace(p.config, windows=own)) for p in policies)


def every_third(logits, weights, step, context):
    """The aligned model's word at every third step, the mixture's at the others, none twice in a row."""
    mixed = jnp.einsum("mrv,rm->rv", logits, weights)
    words = jnp.arange(mixed.shape[-1])
    mixed = jnp.where((step % 3 == 0)[:, None], logits[1], mixed)
    return jnp.where(words == context.token[1][:, None], -1e9, mixed), step + 1


every_third.initial_state = lambda rows: jnp.zeros(rows, jnp.int32)
every_third.takes_context = True


@pytest.mark.parametrize("length", [1, 5, 16])
def test_one_candidate_is_the_plain_loop(toy, length):
    check_driver(toy, requests_of(toy), length)


@pytest.mark.parametrize("size", [7, 24])
def test_windows_that_have_come_round(toy, size):
    pair = windowed(toy, size)
    check_driver(pair, requests_of(pair), 5)


def test_caches_in_eight_bits(toy):
    check_driver(toy, requests_of(toy), 16, replace(CONFIG, kv_cache="int8", max_new_tokens=16), apart=5e-3)


def test_rows_with_settings_of_their_own(toy):
    configs = replace(CONFIG, temperature=0.5, seed=9), replace(CONFIG, top_k=5, max_new_tokens=11), None
    requests = [replace(r, config=configs[n % 3]) for n, r in enumerate(requests_of(toy))]
    check_driver(toy, requests, 4)


def test_stop_texts_and_prefix_caches(toy):
    config = replace(CONFIG, stop=(".",))
    check_driver(toy, requests_of(toy), 4, config)
    requests = requests_of(toy)
    cached = blocks(3, 4, "logprob", plain=replace(complete_unshared, prefixes=PrefixCache(0.1)))
    plain = {c.request.key: c.tokens for c in blocks(3, 4, "logprob")(toy, requests, config, 6)}
    for _ in range(2):
        assert {c.request.key: c.tokens for c in cached(toy, requests, config, 6)} == plain


def test_a_rule_has_the_state_of_what_was_kept(toy):
    check_driver(toy, requests_of(toy), 4, rule=every_third)
    for draw in (lookahead(3, 4, 2, "logprob"), beams(2, 2, 3, "logprob")):
        for done in draw(toy, requests_of(toy, 2, 1), CONFIG, 4, every_third):
            # Every third word is the aligned model's own: the state is one for each word that was kept.
            own = done.model_logprobs[::3, 1]
            assert np.allclose(done.logprobs[::3][1:], own[1:], atol=0.05) or len(own) < 2


@pytest.mark.parametrize(
    "draw",
    [
        blocks(3, 4, "logprob"), beams(3, 2, 3, "log-ratio"), rejection(5, 4, 0.5, "log-ratio"),
        lookahead(4, 6, 2, "log-ratio"), lookahead(2, 5, 3, "log-ratio", beams=2),
        lookahead(3, 5, 2, "log-ratio", sampled=True),
    ],
    ids=lambda draw: draw.name,
)  # fmt: skip
@pytest.mark.parametrize("pair", ["plain", "windows"])
def test_figures_are_those_of_the_text_read_at_once(toy, draw, pair):
    """Whatever was kept, copied and thrown away, the caches are those of the completion's own words."""
    policies = windowed(toy, 7) if pair == "windows" else toy
    prompts = load_prompts("toy", 3)
    made = generate(policies, prompts, 0.5, draw=draw, rows=draw.width * 2, max_new_tokens=23)
    for prompt, done in zip(prompts, made, strict=True):
        (read,) = score(policies, [prompt], [done.tokens], [0.5])
        np.testing.assert_allclose(done.model_logprobs, read.model_logprobs, atol=APART)


def test_adapters_on_one_base():
    pair = adapted_pair()
    check_driver(pair, requests_of(pair), 5)


def test_nothing_is_compiled_for_prompts_strengths_or_scores(toy):
    def compiled(draw, strengths):
        before = roll_out.roll_out._cache_size()
        list(draw(toy, requests_of(toy, 3, 1, strengths), CONFIG, 8))
        return roll_out.roll_out._cache_size() - before

    compiled(lookahead(4, 6, 3, "logprob"), ((0.5,),))
    assert compiled(lookahead(4, 6, 3, "log-ratio*2"), ((0.1,), (2.0,))) == 0


def stubborn(logits, weights, state):
    return linear_rule(logits, weights, None)[0], state


stubborn.initial_state = lambda rows: jnp.zeros((), jnp.int32)


def test_what_cannot_be_searched_is_told(toy):
    run = partial(generate, toy, ["x"], 0.5)
    with pytest.raises(
        ValueError, match="rows: expected at least 8, the candidates of one completion, got 4"
    ):
        run(draw=blocks(8, 4, "logprob"), rows=4)
    with pytest.raises(ValueError, match="a roll-out of 2001 tokens does not fit the context of"):
        run(draw=lookahead(2, 2000, 1, "logprob"))
    with pytest.raises(ValueError, match=r"expected at most 512 first tokens, the words of .*, got 600"):
        run(draw=lookahead(600, 1, 1, "logprob"))
    with pytest.raises(ValueError, match=r"stubborn: expected a state with a row for each row"):
        run(draw=blocks(2, 4, "logprob"), rule=stubborn)
    with pytest.raises(ValueError, match="M: expected at most L \\+ 1 = 3 tokens"):
        lookahead(2, 2, 4, "logprob")
