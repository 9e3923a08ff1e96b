"""What candidates are ranked by: as it is written, what it gives, and what is told where it fails."""

import sys

import numpy as np
import pytest

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.request import Completion, Request
from dera_jax.rewards.registry import KNOWN, Reward, parse_rewards
from dera_jax.search.notation import SCORES, split_draw, split_score
from dera_jax.search.scores import ScoreError, as_rewards_see, as_score, parse_score


def completion(attempt, tokens=(5, 6, 7), reason="length", **columns):
    asked = Prompt("p3", "Say it.", columns=columns)
    request = Request(EncodedPrompt(asked, ((1,), (1,))), 0, (1.0,), attempt=attempt)
    zeros = np.zeros(len(tokens), np.float32)
    models = np.stack([zeros - 1, zeros - 0.5], axis=1)
    return Completion(request, list(tokens), "tea " * len(tokens), reason, zeros, models, zeros, zeros, None)


def decode(tokens):
    return "".join(map(chr, tokens))


CANDIDATES = [completion(n, range(n + 1), "eos" if n % 2 else "length") for n in range(4)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("length:40:60", [("length:40:60", 1)]),
        ("length:40:60*2", [("length:40:60", 2)]),
        ("length:40:60*2+log-ratio", [("length:40:60", 2), ("log-ratio", 1)]),
        ("log-ratio*-1e-3+slots*.5", [("log-ratio", -1e-3), ("slots", 0.5)]),
        ("log-ratio*1e+3+slots", [("log-ratio", 1e3), ("slots", 1)]),
        ("slots+log-ratio+slots", [("slots", 1), ("log-ratio", 1), ("slots", 1)]),
        ("model:base+adapter*2+keywords:a|b+c", [("model:base+adapter", 2), ("keywords:a|b+c", 1)]),
        ("python:mine:f*-1+model:a", [("python:mine:f", -1), ("model:a", 1)]),
        (r"length:1:9:\x2b\x2a*3", [(r"length:1:9:\x2b\x2a", 3)]),
    ],
)
def test_a_sum_is_taken_apart_where_scores_begin(text, parts):
    assert split_score(text) == parts


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a score is missing in"),
        ("*2", "a score is missing in"),
        ("polite", "unknown score 'polite'; known: length:MIN:MAX"),
        ("slots*2+polite", "unknown score 'polite'; known: length:MIN:MAX"),
        ("slots*x", r"with a finite number as WEIGHT, found 'slots\*x'"),
        ("slots*", "with a finite number as WEIGHT"),
        ("slots*1e999", "with a finite number as WEIGHT"),
        ("slots*nan+slots", "with a finite number as WEIGHT"),
        ("length:9", "expected length:MIN:MAX"),
        ("python:json:gone", "has no function gone"),
    ],
)
def test_what_is_written_wrongly_is_told(text, told):
    with pytest.raises(ValueError, match=told) as caught:
        parse_score(text)
    assert "--reward" not in str(caught.value) and "\n" not in str(caught.value)


def test_every_reward_is_a_score():
    assert all(form in SCORES for _, form, _ in KNOWN.values())
    assert split_draw("best-of:8:length:40:60:a:b") == ("best-of", ["8"], "length:40:60:a:b")


@pytest.mark.parametrize("spec", ["length:1:3", "keywords:tea|milk"])
def test_a_reward_scores_as_it_judges(spec):
    (reward,) = parse_rewards(spec)
    judged = reward(as_rewards_see(CANDIDATES, decode))
    assert parse_score(spec)(CANDIDATES, decode) == judged
    doubled = parse_score(f"{spec}*2+{spec}*-0.5")(CANDIDATES, decode)
    np.testing.assert_allclose(doubled, 1.5 * np.array(judged))


def test_the_log_ratio_is_that_of_the_completion_s_own_figures():
    found = parse_score("log-ratio*2+length:1:3")(CANDIDATES, decode)
    ratios = [each.model_logprobs[:, 1].sum() - each.model_logprobs[:, 0].sum() for each in CANDIDATES]
    lengths = parse_score("length:1:3")(CANDIDATES, decode)
    np.testing.assert_allclose(found, 2 * np.array(ratios) + lengths)
    with pytest.raises(ValueError, match="log-ratio: expected one aligned model, found 2"):
        parse_score("log-ratio").check_models(2)
    parse_score("slots").check_models(2)


def test_functions_and_rewards_of_python_are_scores():
    def long(completions, topic, **columns):
        return [len(text) + len(topic[0]) for text in completions]

    score = as_score(long)
    assert score.name == "long" and score.fingerprint is not None
    candidates = [completion(n, range(n + 1), topic="tea") for n in range(3)]
    assert score(candidates, decode) == [7.0, 11.0, 15.0]
    (reward,) = parse_rewards("length:1:3")
    assert as_score(reward).name == "length:1:3" and as_score(score) is score
    assert as_score("length:1:3").fingerprint is None
    with pytest.raises(TypeError, match="score: expected text such as 'length:40:60', a function"):
        as_score(3)


def test_the_fingerprint_is_that_of_what_is_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("good\t1.0\n")
    one, same = (parse_score(f"lexicon:{tmp_path / name}*2+slots").fingerprint for name in ("a", "b"))
    (tmp_path / "b").write_text("good\t2.0\n")
    other = parse_score(f"lexicon:{tmp_path / 'b'}*2+slots").fingerprint
    assert one == same != other


def values(*found):
    return lambda seen: list(found)


def fails(seen):
    return 1 / 0


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (values(0.0, float("nan"), 1.0, 1.0), "found nan for prompt 'p3', candidate 1$"),
        (values(0.0, 1.0, None, 1.0), "to rank candidates by, found None for prompt 'p3', candidate 2$"),
        (values(0.0, 1.0), "prompt 'p3', candidates 0 to 3: reward mine: expected 4 numbers, found 2$"),
        (
            lambda seen: 3,
            "prompt 'p3', candidates 0 to 3: reward mine: expected a list of 4 numbers, found 3$",
        ),
        (fails, "prompt 'p3', candidates 0 to 3: reward mine: ZeroDivisionError: .*test_scores.py:"),
        (values(1e101, 0.0, 0.0, 0.0), r"score mine: .* found 1e\+101 for prompt 'p3', candidate 0$"),
    ],
)
def test_a_failure_names_prompt_and_candidate(found, told):
    with pytest.raises(ScoreError, match=told):
        as_score(Reward("mine", found))(CANDIDATES, decode)


def test_user_code_that_exits_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "exits_here.py").write_text("import sys\ndef f(completions, **_):\n    sys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    score = parse_score("python:exits_here:f")
    with pytest.raises(ScoreError, match="prompt 'p3', candidate 0: reward python:exits_here:f: SystemExit"):
        score(CANDIDATES[:1], decode)
