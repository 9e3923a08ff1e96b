"""The exact chain, against all texts of a tiny one, listed."""

import itertools
import json

import numpy as np
import pytest

from scripts.chain.__main__ import main
from scripts.chain.counts import count, transitions, write_counts
from scripts.chain.model import Chain

WORDS, LONGEST, STOP = 4, 4, 0
RATE = 0.4


@pytest.fixture(scope="module")
def chain():
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(WORDS, 2.0), WORDS)
    return Chain(table, 0, STOP, rng.normal(size=LONGEST + 1))


def texts(longest=LONGEST):
    """Every text: up to the stop word, or cut off."""
    words = [word for word in range(WORDS) if word != STOP]
    for length in range(longest):
        yield from ((*text, STOP) for text in itertools.product(words, repeat=length))
    yield from itertools.product(words, repeat=longest)


def law(chain, tilt):
    """The probability of every text under a policy, by its own words."""
    norms = chain.norms(tilt)
    found = []
    for text in texts():
        before, total = chain.first, 0.0
        for place, word in enumerate(text):
            total += np.log(chain.reference[before, word]) + tilt[place, word] - norms[place, before]
            before = word
        found.append(np.exp(total))
    return np.array(found)


def rewards(chain):
    return np.array(
        [chain.reward[len(text) - 1] if text[-1:] == (STOP,) else chain.reward[-1] for text in texts()]
    )


@pytest.fixture(scope="module")
def aligned(chain):
    return chain.trained(0.3, 5, RATE)


def test_a_policy_is_a_law_of_texts(chain, aligned):
    own = law(chain, aligned)
    assert own.sum() == pytest.approx(1)
    measured = chain.measure(aligned)
    assert measured.reward == pytest.approx(own @ rewards(chain))
    assert measured.kl == pytest.approx(own @ np.log(own / law(chain, chain.plain)))
    assert measured.lengths.sum() == pytest.approx(1)


@pytest.mark.parametrize("strength", [0.2, 1.0, np.inf])
def test_the_optimum_is_the_tilted_reference(chain, strength):
    wanted = law(chain, chain.plain) * np.exp(rewards(chain) / strength)
    np.testing.assert_allclose(law(chain, chain.optimum(strength)), wanted / wanted.sum())


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0, 2.0])
def test_the_mixtures_are_those_of_texts_and_of_words(chain, aligned, lambda_):
    reference, own = law(chain, chain.plain), law(chain, aligned)
    wanted = reference ** (1 - lambda_) * own**lambda_
    found, log_z = chain.response_mixture(aligned, lambda_)
    np.testing.assert_allclose(law(chain, found), wanted / wanted.sum())
    assert log_z == pytest.approx(np.log(wanted.sum()), abs=1e-12)
    # Of words: by the two tables at a place, not by the tilt.
    mixed, norms = chain.token_mixture(aligned, lambda_), chain.norms(aligned)
    for place in range(LONGEST):
        table = chain.reference * np.exp(aligned[place] - norms[place][:, None])
        words = chain.reference ** (1 - lambda_) * table**lambda_
        found = chain.reference * np.exp(mixed[place] - chain.norms(mixed)[place][:, None])
        np.testing.assert_allclose(found, words / words.sum(1, keepdims=True))


def test_gradient_steps_climb_to_the_optimum(chain):
    strength = 0.3
    distances = [
        chain.distance(chain.trained(strength, steps, RATE), strength) for steps in (0, 1, 4, 16, 200)
    ]
    assert all(after < before for before, after in itertools.pairwise(distances))
    assert distances[-1] == pytest.approx(0, abs=1e-9)
    # Which is the divergence itself.
    own, best = law(chain, chain.plain), law(chain, chain.optimum(strength))
    assert distances[0] == pytest.approx(own @ np.log(own / best))


def test_a_step_is_the_natural_gradient(chain):
    """From the reference a step adds η times the reward to come, which texts tell one by one."""
    step = chain.trained(0.3, 1, RATE)
    own, reward = law(chain, chain.plain), rewards(chain)
    for place, word in ((0, 1), (1, 2), (2, STOP)):
        passing = np.array([len(text) > place and text[place] == word for text in texts()])
        assert step[place, word] == pytest.approx(RATE * (own @ (passing * reward)) / (own @ passing))


def test_the_whole_responses_of_a_perfect_pair_are_the_optimum(chain):
    perfect = chain.optimum(0.5)
    for lambda_ in (0.4, 1.7):
        mixed, best = chain.response_mixture(perfect, lambda_)[0], chain.optimum(0.5 / lambda_)
        np.testing.assert_allclose(law(chain, mixed), law(chain, best), rtol=1e-9)


def test_counts_are_those_of_the_text(toy, tmp_path):
    counts = count("the cat\nthe cat sat\n\n", toy)
    path = tmp_path / "counts.json.xz"
    write_counts(counts, path)
    table = transitions(path)
    np.testing.assert_allclose(table.sum(1), 1)
    assert (table > 0).all()
    starts = {after: times for before, after, times in counts["pairs"] if before == 0}
    assert sum(starts.values()) == 2 and max(starts.values()) == 2  # both begin alike


def test_the_page_is_made_from_the_counts(toy, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\nthe dog saw the cat\n")
    assert main([f"--text={text}", f"--tokenizer={toy}", f"--out={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "chain.json").read_text())
    for each in (*found["perfect"], *found["trained"], *found["soft"]):
        for strength in each["strengths"]:
            parts = [strength["gap"][name] for name in ("per_token", "aligned", "retrained")]
            assert sum(parts) == pytest.approx(strength["gap"]["whole"], abs=1e-12)
            assert strength["distance"] > -1e-9
    assert "# The exact chain" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "chain.png").stat().st_size > 10_000


def test_the_committed_page_says_what_the_chain_says():
    from scripts.chain.__main__ import KEPT
    from scripts.chain.measure import chain_of
    from scripts.chain.page import write_page

    found = json.loads((KEPT / "chain.json").read_text())
    assert (KEPT / "README.md").read_text() == write_page(found)
    chain = chain_of(transitions(KEPT / "counts.json.xz"))
    (half,) = (each for each in found["perfect"] if each["beta"] == 0.5)
    for strength in half["strengths"][::4]:
        best = chain.measure(chain.optimum(0.5 / strength["lambda"]))
        assert best.reward == pytest.approx(strength["optimum"]["reward"])
        own = chain.measure(chain.token_mixture(chain.optimum(0.5), strength["lambda"]))
        assert own.reward == pytest.approx(strength["tokens"]["reward"])
