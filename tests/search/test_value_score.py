"""The score value:DIR: V of a candidate's last token, by the tokens that it was drawn as."""

from dataclasses import replace

import numpy as np
import pytest

from dera_jax import generate, load_policy
from dera_jax.data.batches import make_batch
from dera_jax.decoding.request import Completion
from dera_jax.rules.tilt import tilt
from dera_jax.scoring.logprobs import completion_logits
from dera_jax.search.best_of import best_of
from dera_jax.search.notation import SCORES, split_score
from dera_jax.search.scores import parse_score
from dera_jax.search.values import last_values
from tests.support.value_heads import save_random

TEXTS = ["Once upon a time", "Lily had a dog", "Tom saw"]


@pytest.fixture(scope="module")
def reference(toy):
    return load_policy(toy)


@pytest.fixture(scope="module")
def saved(toy, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "value"
    return folder, save_random(reference, str(toy), folder)


@pytest.fixture(scope="module")
def made(reference, pair):
    return generate((reference, pair[1]), TEXTS, 0.0, num_samples=2, max_new_tokens=24)


def values_at(value, completion: Completion):
    """V of every token of a completion, read by itself."""
    batch = make_batch([completion.request.prompt.tokens[0]], [completion.tokens])
    values = np.asarray(completion_logits(value.config, value.params, batch))[0]
    return values[np.arange(len(completion.tokens)), completion.tokens]


def no_text(tokens):
    raise AssertionError("a value is of tokens")


def test_it_is_the_value_of_the_last_token(saved, made):
    folder, value = saved
    score = parse_score(f"value:{folder}")
    expected = [values_at(value, each)[-1] for each in made]
    np.testing.assert_allclose(score(made, no_text), expected, atol=2e-5)
    assert np.std(expected) > 0.01


def test_a_part_of_a_candidate_has_the_value_at_its_end(saved, made):
    folder, value = saved
    score, whole = parse_score(f"value:{folder}"), made[0]
    parts = [replace(whole, tokens=whole.tokens[:count]) for count in range(1, len(whole.tokens) + 1)]
    np.testing.assert_allclose(score(parts, no_text), values_at(value, whole), atol=2e-5)


def test_it_is_one_of_a_weighted_sum(saved, made):
    folder, _ = saved
    one, other = parse_score(f"value:{folder}"), parse_score("length:10:20")

    def decode(tokens):
        return " ".join(map(str, tokens))

    both = parse_score(f"value:{folder}*-2+length:10:20")
    expected = -2 * np.array(one(made, decode)) + other(made, decode)
    np.testing.assert_allclose(both(made, decode), expected)
    assert split_score("slots+value:a+b*2+value:c") == [("slots", 1), ("value:a+b", 2), ("value:c", 1)]
    assert "value:DIR" in SCORES


def test_the_fingerprint_is_that_of_head_and_model(toy, reference, saved, tmp_path):
    first = parse_score(f"value:{saved[0]}").fingerprint
    save_random(reference, str(toy), tmp_path / "other", seed=5)
    save_random(reference, str(toy), tmp_path / "same")
    assert first == parse_score(f"value:{tmp_path / 'same'}").fingerprint
    assert first != parse_score(f"value:{tmp_path / 'other'}").fingerprint


def test_best_of_takes_the_candidate_of_highest_value(reference, saved, pair):
    folder, value = saved
    policies = reference, pair[1]
    (found,) = generate(policies, TEXTS[:1], 0.0, max_new_tokens=24, draw=best_of(6, f"value:{folder}"))
    (first,) = generate(policies, TEXTS[:1], 0.0, max_new_tokens=24)
    assert found.search.score == pytest.approx(values_at(value, found)[-1], abs=2e-5)
    assert found.search.score >= found.search.runner_up and found.search.candidates == 6
    assert found.search.score >= values_at(value, first)[-1] - 2e-5


def test_what_does_not_fit_is_a_line(toy, pair, reference, saved, made):
    folder, value = saved
    draw = best_of(2, f"value:{folder}")
    other = replace(reference, fingerprint="another")
    for call, said in [
        (lambda: parse_score("value:"), "expected value:DIR, found 'value:'"),
        (lambda: parse_score("value"), "expected value:DIR, found 'value'"),
        (lambda: parse_score("value:/nowhere"), "/nowhere: no such folder"),
        (lambda: parse_score(f"value:{toy}"), "expected a value head, found no value_config.json"),
        (lambda: generate((other, pair[1]), TEXTS, 0.0, draw=draw), "a value head of another model than"),
        (lambda: last_values(value, [(1, 2)], [()]), "a completion without tokens"),
        (lambda: last_values(value, [(1,) * 2000], [(5,)]), "a text of 2000 tokens does not fit"),
        (
            lambda: generate((reference, value), TEXTS, 0.5, draw=best_of(2, "log-ratio"), rule=tilt),
            "expected a language model, found a value head",
        ),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
