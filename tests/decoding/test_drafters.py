"""Look-ups in a row's own tokens, and the choice of who drafts."""

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding.drafters import NGRAM, Choice, Paces, acceptance_bounds, expected_tokens
from dera_jax.decoding.history import LONGEST_MATCH, History, look_up, matches, remember
from dera_jax.decoding.room import CHUNK


def looked_up(tokens, count):
    """Returns the draft by its definition: the longest match of the last tokens, of those the latest."""
    best, found = -1, len(tokens) - 2
    for end in range(len(tokens) - 1):
        length = 0
        while length < LONGEST_MATCH and length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        if length >= best:
            best, found = length, end
    period = max(1, len(tokens) - 1 - found)
    return [tokens[max(0, found + 1 + n % period)] for n in range(count)]


@pytest.mark.parametrize("words", [2, 5, 30])
def test_what_followed_the_last_tokens_before(words):
    numbers = np.random.default_rng(words)
    rows = [numbers.integers(words, size=n).tolist() for n in (1, 2, 3, 9, 40, 64)]
    found = np.array(look_up(History.of(rows, 80), 7))
    assert found.T.tolist() == [looked_up(row, 7) for row in rows]


def test_a_copy_is_drafted_to_its_end():
    text = [5, 9, 2, 7, 1, 8, 3, 6, 4]
    assert np.array(look_up(History.of([[*text, 0, *text[:3]]], 32), 6)).T.tolist() == [text[3:9]]


def test_a_loop_goes_on():
    assert np.array(look_up(History.of([[4, 1, 2, 3, 1, 2, 3, 1, 2, 3]], 32), 7)).T.tolist() == [
        [1, 2, 3, 1, 2, 3, 1]
    ]


def test_what_was_kept_is_remembered():
    history = remember(
        History.of([[1, 2], [3]], 8), jnp.array([[7, 8], [9, 10], [11, 12]]), jnp.array([2, 3])
    )
    assert [row[:n].tolist() for row, n in zip(*map(np.array, history), strict=True)] == [
        [1, 2, 7, 9],
        [3, 8, 10, 12],
    ]


def test_matches_are_the_first_tokens_that_look_ups_find():
    numbers = np.random.default_rng(0)
    before, tokens = numbers.integers(3, size=(2, 40)).tolist()
    everything = [*before, *tokens]
    expected = sum(looked_up(everything[:end], 1)[0] == everything[end] for end in range(40, 80))
    assert matches(before, tokens) == expected > 5


def test_bounds_are_those_of_total_variation():
    """Over an enumerated vocabulary, each word as often as it is drawn."""
    numbers = np.random.default_rng(0)
    own, other = numbers.dirichlet(np.ones(6), size=2)
    counts = np.round(own * 20_000).astype(int)
    drawn = np.repeat(np.arange(6), counts)
    low, high = acceptance_bounds(np.log(own)[drawn], np.log(other)[drawn])
    distance = abs(own - other).sum() / 2
    assert high == pytest.approx(1 - distance, abs=1e-3)
    assert low == pytest.approx((1 - distance) / (1 + distance), abs=1e-3)


def test_tokens_of_a_pass():
    """By enumerating how many of the drafts are kept."""
    kept = [0.8**n * (0.2 if n < 3 else 1.0) for n in range(4)]
    assert expected_tokens(0.8, 3) == pytest.approx(sum((n + 1) * p for n, p in enumerate(kept)))
    assert expected_tokens(0.0, 5) == 1 and expected_tokens(1.0, 5) == 6


def choice(plain=1.0, **drafted):
    paces = Paces()
    paces.plain.first, paces.plain.best = 3 * plain, plain
    for name, seconds in drafted.items():
        pace = paces.drafted[{"ngram": NGRAM, "reference": 0, "aligned": 1}[name]]
        pace.first = pace.best = seconds
    return Choice(paces, [0.5, 0.5], 4, 4)


def test_plain_chunks_come_first():
    new = Choice(Paces(), [0.5, 0.5], 4, 4)
    assert new.next(1e6) == (False, None)
    new.expect([(0, 0.99)])
    assert new.next(1e6) == (False, None)


def test_who_drafts_is_who_gives_most():
    found = choice(ngram=1.0, reference=0.9, aligned=0.8)
    found.expect([(NGRAM, 0.2), (0, 0.95), (1, 0.8)])
    assert found.gain(0) == pytest.approx(4 * expected_tokens(0.95, 4) / CHUNK / 0.9)
    assert found.next(1.0) == (True, 0)


def test_nobody_drafts_what_is_rarely_kept():
    found = choice(ngram=0.9, reference=0.9, aligned=0.9)
    found.expect([(NGRAM, 0.1), (0, 0.3), (1, 0.4)])
    assert found.next(1e6) == (False, None)


def test_a_drafter_is_tried_where_it_costs_little_of_what_is_left():
    """Its compilation is taken to last as long as the plain one's."""
    found = choice()
    found.expect([(0, 0.97)])
    assert found.next(10.0) == (False, None)
    assert found.next(1000.0) == (True, 0)
    found.paces.drafted[0].add(5.0)  # with its compilation
    found.paces.drafted[0].add(2.0)  # slower than plain chunks
    assert found.next(1000.0) == (False, None)
