"""What block by block searches draw, against laws of a tiny pair and against plain searches in Python."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import complete, complete_unshared, run_batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request, shape_of
from dera_jax.rewards.registry import Reward
from dera_jax.search.best_of import best_of, soft_best_of
from dera_jax.search.blocks import beams, blocks, rejection, robust_blocks, soft_blocks
from dera_jax.search.draws import MOST
from dera_jax.search.lookahead import lookahead
from dera_jax.search.robust import robust_weights
from dera_jax.search.scores import Score
from tests.support.toy import EOS, all_completions, exact_logprobs, tiny_policy

PROMPT = (1, 2, 0, 2)
VOCAB = 4
LONGEST = 4
LAMBDA = 0.4
CONFIG = DecodeConfig(max_new_tokens=LONGEST, seed=5)
COMPLETIONS = all_completions(VOCAB, LONGEST)


def value(tokens):
    """A score without ties that depends on the order."""
    return sum((1.3 * (word == 1) - 0.4 * word) / (1.7 + place) for place, word in enumerate(tokens))


SCORE = Reward("value", lambda seen: [value(list(tokens)) for tokens in seen.whole_tokens])


@pytest.fixture(scope="module")
def policies(toy):
    return [tiny_policy(toy, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def law(policies):
    """log π(v | prefix) of the realigned policy for every prefix [vocab], by exact forward passes."""
    each = [exact_logprobs(policy, PROMPT, COMPLETIONS) for policy in policies]
    found = {}
    for row, completion in enumerate(COMPLETIONS):
        mixed = (1 - LAMBDA) * each[0][row] + LAMBDA * each[1][row]
        mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
        for place in range(len(completion)):
            found[completion[:place]] = mixed[place]
    return found


def requests(samples=1, lambda_=LAMBDA):
    prompt = EncodedPrompt(Prompt(0, "x"), (PROMPT, PROMPT))
    return [Request(prompt, sample, (lambda_,)) for sample in range(samples)]


def drawn(policies, draw, samples=1, lambda_=LAMBDA, rows=64, config=CONFIG):
    return list(draw(policies, requests(samples, lambda_), config, rows))


def said(completions):
    return {done.request.sample: tuple(done.tokens) for done in completions}


def has_ended(tokens):
    return len(tokens) == LONGEST or (len(tokens) > 0 and tokens[-1] == EOS)


def greedy(law, tokens, count):
    for _ in range(count):
        if has_ended(tokens):
            break
        tokens = (*tokens, int(np.argmax(law[tokens])))
    return tokens


def search_by_hand(law, k, ahead, emitted, weight=1.0, beams=1):
    """DeAL in plain Python: no caches, no batch."""
    living, ended = [()], []
    while True:
        candidates = list(ended)
        first = not candidates and living == [()]
        for prefix in living:
            count = beams * k if first else k
            for word in np.argsort(-law[prefix], kind="stable")[:count]:
                rolled = greedy(law, (*prefix, int(word)), ahead)
                known = sum(law[rolled[:n]][rolled[n]] for n in range(len(prefix) + 1))
                kept = rolled[: len(prefix) + emitted]
                candidates.append((value(rolled) + weight * known, kept, has_ended(kept)))
        chosen = sorted(candidates, key=lambda each: -each[0])[:beams]
        ended = [each for each in chosen if each[2]]
        # The rows of a part go on with its own first.
        living = [each[1] for each in chosen if not each[2]]
        if not living:
            return chosen[0]


@pytest.mark.parametrize(
    ("k", "ahead", "emitted", "beams", "weight"),
    [
        (1, 2, 1, 1, 1.0), (3, 0, 1, 1, 1.0), (4, 3, 1, 1, 0.0), (2, 2, 2, 1, 0.5), (4, 1, 2, 1, 1.0),
        (3, 3, 3, 1, 0.3), (1, 1, 1, 3, 1.0), (2, 1, 1, 2, 0.5), (2, 2, 2, 2, 0.2), (1, 0, 1, 4, 1.0),
    ],
)  # fmt: skip
def test_deal_finds_what_a_search_without_caches_finds(policies, law, k, ahead, emitted, beams, weight):
    draw = lookahead(k, ahead, emitted, SCORE, beams=beams, logprob=weight)
    (done,) = drawn(policies, draw)
    score, tokens, _ = search_by_hand(law, k, ahead, emitted, weight, beams)
    assert tuple(done.tokens) == tokens
    assert done.search.score == pytest.approx(score, abs=1e-5)


def test_deal_over_all_words_finds_the_best_completion(policies, law):
    """With a score that its last word decides, the last decision looks at everything there is."""
    config = replace(CONFIG, max_new_tokens=2)
    everything = [done for done in all_completions(VOCAB, 2)]
    score = Reward(
        "second", lambda seen: [float(t[1] * 3 + 5 if len(t) > 1 else t[0] == EOS) for t in seen.whole_tokens]
    )
    (done,) = drawn(policies, lookahead(VOCAB, 1, 1, score, logprob=0.0), config=config)
    best = max(float(t[1] * 3 + 5 if len(t) > 1 else 0) for t in everything)
    assert done.search.score == best


def test_beams_over_all_words_by_the_aligned_model_are_its_greedy_text(policies):
    for lambda_ in (0.0, 0.4, 2.0):
        draw = lookahead(VOCAB, 0, 1, "log-ratio+reference-logprob", logprob=0.0)
        (found,) = drawn(policies, draw, lambda_=lambda_)
        (expected,) = drawn(policies, complete, lambda_=1.0, config=replace(CONFIG, temperature=0.0))
        assert found.tokens == expected.tokens


def block_law(law, n, length):
    """P(completion) where of n continuations of so many tokens the best is kept, by dynamic programming."""
    reached = {(): 1.0}
    while any(not has_ended(prefix) for prefix in reached):
        after = {}
        for prefix, mass in reached.items():
            if has_ended(prefix):
                after[prefix] = after.get(prefix, 0.0) + mass
                continue
            ends = {prefix: 1.0}
            for _ in range(length):
                longer = {}
                for start, p in ends.items():
                    if has_ended(start):
                        longer[start] = longer.get(start, 0.0) + p
                    else:
                        for word in range(VOCAB):
                            longer[(*start, word)] = p * np.exp(law[start][word])
                ends = longer
            order = sorted(ends, key=value)
            below = 0.0
            for end in order:
                share = (below + ends[end]) ** n - below**n
                below += ends[end]
                after[end] = after.get(end, 0.0) + mass * share
        reached = after
    return reached


def assert_follows(completions, law):
    names = sorted(law)
    number = {name: i for i, name in enumerate(names)}
    observed = np.bincount([number[tuple(c.tokens)] for c in completions], minlength=len(names))
    expected = np.array([law[name] for name in names]) * len(completions)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("k", "length"), [(2, 1), (3, 2), (4, 3)])
def test_blocks_have_their_law(policies, law, k, length):
    completions = drawn(policies, blocks(k, length, SCORE), samples=2500, rows=512)
    assert_follows(completions, block_law(law, k, length))
    with pytest.raises(AssertionError):
        assert_follows(completions, block_law(law, 1, length))


def test_one_block_is_best_of_n(policies):
    """Candidate k is the attempt k in both."""
    ours = drawn(policies, blocks(5, LONGEST, SCORE), samples=50)
    theirs = drawn(policies, best_of(5, SCORE), samples=50)
    assert said(ours) == said(theirs)
    assert {c.request.sample: c.search.score for c in ours} == {
        c.request.sample: c.search.score for c in theirs
    }


def test_one_soft_block_has_the_law_of_soft_best_of_n(policies):
    ours = drawn(policies, soft_blocks(2, LONGEST, 0.5, SCORE), samples=1000, rows=256)
    theirs = drawn(policies, soft_best_of(2, 0.5, SCORE), samples=1000, rows=256)
    names = sorted({*said(ours).values(), *said(theirs).values()})
    counts = [[list(said(some).values()).count(name) for name in names] for some in (ours, theirs)]
    common = np.array(counts)[:, np.sum(counts, axis=0) > 10]
    assert stats.chi2_contingency(common).pvalue > 1e-3


def rejected_by_hand(candidates, length, share):
    """Speculative rejection of candidates whose whole texts are known."""
    living, at = list(range(len(candidates))), 0
    while any(len(candidates[i]) > at for i in living):
        at += length
        going = [i for i in living if len(candidates[i]) > at]
        order = sorted(going, key=lambda i: -value(candidates[i][:at]))
        gone = order[len(order) - int(share * len(order)) :] if len(order) > 1 else []
        living = [i for i in living if i not in gone]
    return max(living, key=lambda i: (value(candidates[i]), -i))


@pytest.mark.parametrize(("n", "length", "share"), [(6, 1, 0.5), (6, 2, 0.4), (8, 1, 0.25), (3, 3, 0.9)])
def test_rejection_gives_up_the_worst(policies, n, length, share):
    samples = 40
    asked = [
        replace(request, attempt=request.attempt * MOST + number)
        for request in requests(samples)
        for number in range(n)
    ]
    whole = {
        (c.request.sample, c.request.attempt): tuple(c.tokens)
        for c in complete_unshared(policies, asked, CONFIG, 64)
    }
    found = drawn(policies, rejection(n, length, share, SCORE), samples=samples, rows=32)
    for done in found:
        candidates = [whole[done.request.sample, number] for number in range(n)]
        assert tuple(done.tokens) == candidates[rejected_by_hand(candidates, length, share)]
        assert done.search.passes <= n * LONGEST


def test_rows_that_are_given_up_serve_the_next_request(policies):
    draw, asked = rejection(8, 1, 0.5, SCORE), requests(2)
    batch = draw.batch(policies, shape_of(asked[0]), CONFIG, 12)
    batch.submit(asked)
    found = list(batch.step())
    assert batch.waiting == 1 and not found
    found += batch.step()
    assert batch.waiting == 0
    while batch.busy:
        found += batch.step()
    expected = said(drawn(policies, draw, samples=2, rows=64))
    assert said(found) == expected


def test_robust_weights_are_the_minimum():
    noise = np.random.default_rng(0)
    for parts in (2, 3, 5):
        scores = noise.normal(size=(parts, 6)) * noise.uniform(0.1, 5, size=(parts, 1))

        def objective(logits, scores=scores):
            weights = np.exp(logits - logits.max())
            return np.log(np.mean(np.exp(weights / weights.sum() @ scores)))

        best = min(optimize.minimize(objective, noise.normal(size=parts)).fun for _ in range(5))
        weights = robust_weights(scores)
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
        assert np.log(np.mean(np.exp(weights @ scores))) <= best + 1e-4


def test_robust_blocks_take_the_best_by_those_weights(policies):
    looked_at = []

    def count_ones(seen):
        looked_at.append([list(tokens) for tokens in seen.whole_tokens])
        return [float(tokens.count(1)) for tokens in looked_at[-1]]

    one = Reward("ones", count_ones)
    two = Reward("twos", lambda seen: [float(list(t).count(2)) for t in seen.whole_tokens])
    draw = robust_blocks(4, LONGEST, 0.5, Score("both", (one, two)))
    found = drawn(policies, draw, samples=30, rows=4)  # one request at a time
    for done, candidates in zip(found, looked_at, strict=True):
        scores = np.array([[tokens.count(word) for tokens in candidates] for word in (1, 2)], float)
        totals = robust_weights(scores / 0.5) @ scores
        assert done.tokens == candidates[int(np.argmax(totals))]


def key_of(done):
    return done.request.sample, tuple(done.tokens), done.search.candidates


def ordered(found):
    """What was chosen for each request, and its score: a sum of log-probabilities, whose last bits are of the rows."""
    found = sorted(found, key=key_of)
    return [key_of(done) for done in found], pytest.approx([done.search.score for done in found], abs=1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        blocks(3, 2, SCORE), beams(2, 2, 1, SCORE), soft_blocks(3, 1, 0.4, SCORE), rejection(4, 1, 0.5, SCORE),
        lookahead(3, 2, 1, SCORE, sampled=True), lookahead(2, 2, 2, SCORE, beams=2),
    ],
    ids=lambda draw: draw.name,
)  # fmt: skip
def test_neighbours_order_and_rows_change_nothing(policies, draw):
    asked = requests(12)
    expected, scores = ordered(draw(policies, asked, CONFIG, 48))
    alone = [done for request in asked for done in draw(policies, [request], CONFIG, 7)]
    for found in (draw(policies, asked[::-1], CONFIG, draw.width), alone):
        again = sorted(found, key=key_of)
        assert [key_of(done) for done in again] == expected
        assert [done.search.score for done in again] == scores


def test_a_request_that_is_cancelled_leaves_the_others_as_they_are(policies):
    draw, asked = blocks(3, 1, SCORE), requests(8)
    expected = {c.request.sample: tuple(c.tokens) for c in draw(policies, asked, CONFIG, 6)}
    batch = draw.batch(policies, shape_of(asked[0]), CONFIG, 6)
    batch.submit(asked)
    found = list(batch.step())
    assert batch.cancel(asked[0]) or asked[0].sample in said(found)
    assert batch.cancel(asked[7])
    while batch.busy:
        found += batch.step()
    for done in found:
        assert tuple(done.tokens) == expected[done.request.sample]
    assert len(found) >= 6


def test_the_driver_with_one_row_is_the_plain_loop(policies):
    draw, asked = blocks(1, 16, SCORE), requests(20)
    plain = {c.request.sample: c for c in complete_unshared(policies, asked, CONFIG, 8)}
    batch = draw.batch(policies, shape_of(asked[0]), CONFIG, 8)
    for done in run_batch(batch, asked):
        expected = plain[done.request.sample]
        assert (done.tokens, done.text, done.finish_reason) == (
            expected.tokens, expected.text, expected.finish_reason,
        )  # fmt: skip
        np.testing.assert_allclose(done.logprobs, expected.logprobs, atol=1e-6)
    for done in draw(policies, asked, CONFIG, 8):
        for name in ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference", "log_normalizers"):
            np.testing.assert_array_equal(getattr(done, name), getattr(plain[done.request.sample], name))
