"""Rewards: counted by hand, against brute force on stories, and on VADER's own file."""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward, parse_rewards
from tests.support.rewarded import of_texts, reward

RATINGS = {
    "happy": 2.7, "great": 3.1, "sad": -2.1, "self-confident": 2.5, "good": 1.9, "love": 3.2, ":)": 2.0, ":D": 2.3,
    "won": 2.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(toy):
    return AutoTokenizer.from_pretrained(toy)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def of_tokens(tokens, decode, finish_reasons="eos"):
    if isinstance(finish_reasons, str):
        finish_reasons = [finish_reasons] * len(tokens)
    return Completions(["Once"] * len(tokens), [decode(t) for t in tokens], tokens, finish_reasons, decode)


def counted(spec_tail, completions, longest):
    """Returns the count that `length` sees, by asking each possible one; None where all are outside."""
    counts = [None] * len(completions.completions)
    for n in range(longest + 1):
        for i, value in enumerate(reward(f"length:{n}:{n}{spec_tail}", completions)):
            if value == 0:
                assert counts[i] is None
                counts[i] = n
    return counts


def test_length_is_zero_inside_and_minus_one_outside():
    completions = of_texts(*["w " * n for n in range(8)])
    assert reward("length:2:4", completions) == [-1, -1, 0, 0, 0, -1, -1, -1]
    assert reward("length:0:0", completions) == [0] + [-1] * 7


def test_length_before_stop_equals_brute_force(tokenizer, stand_ins):
    stories = (stand_ins / "tinystories/tiny_stories_head.txt").read_text()
    draw = random.Random(0)
    for stop in ("\n", ".", " the ", "she", "zebra"):
        rows, expected = [], []
        for _ in range(25):
            at = draw.randrange(len(stories) - 400)
            tokens = encode(tokenizer, stories[at : at + 400])[: draw.randint(0, 90)]
            starts = [len(tokenizer.decode(tokens[:i])) for i in range(len(tokens))]
            position = tokenizer.decode(tokens).find(stop)
            rows.append(tokens)
            expected.append(None if position < 0 else sum(start < position for start in starts))
        spec = ":" + stop.replace("\n", "\\n").replace(" ", "\\x20")
        assert counted(spec, of_tokens(rows, tokenizer.decode, "length"), 90) == expected
        ended = [len(t) if n is None else n for t, n in zip(rows, expected, strict=True)]
        assert counted(spec, of_tokens(rows, tokenizer.decode, "eos"), 90) == ended
        assert counted(spec, of_tokens(rows, tokenizer.decode, "stop"), 90) == ended
        assert len(set(expected)) >= 5 or stop == "zebra"


def test_length_counts_every_token_of_a_character(tokenizer):
    tokens = encode(tokenizer, "A 😀a\n\nB")
    assert len(tokens) > len("A 😀a\n\nB")  # The emoji is four byte tokens.
    newline = encode(tokenizer, "A\n")[-1]
    assert counted(":\\n", of_tokens([tokens], tokenizer.decode), 20) == [tokens.index(newline)]


def test_length_decodes_few_times(tokenizer):
    tokens = encode(tokenizer, "One day a girl went home. " * 20 + "\n" + "Then she slept. " * 5)
    calls = []

    def decode(ids):
        calls.append(len(ids))
        return tokenizer.decode(ids)

    completions = of_tokens([tokens], tokenizer.decode)
    parse_rewards("length:1:2:\\n")[0](Completions(**{**vars(completions), "decode": decode}))
    assert len(calls) <= 2 + len(tokens).bit_length()


@pytest.mark.parametrize(
    ("written", "stop"),
    [
        ("\\n", "\n"),
        ("\\x2c", ","),
        (":", ":"),
        ("a:b", "a:b"),
        ("\\\\n", "\\n"),
        ("\\u00e9\\t", "é\t"),
        ("é", "é"),
    ],
)
def test_stop_is_written_with_escapes(written, stop):
    def decode(tokens):
        return "".join(map(chr, tokens))

    rows = [[ord(c) for c in text] for text in ("ab" + stop + "cd", "abcdefgh")]
    assert counted(f":{written}", of_tokens(rows, decode, "length"), 10) == [2, None]


def test_lexicon_of_sentences(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word}\t{rating}\t0.5\t[1, 2]\n" for word, rating in RATINGS.items()))

    def mean(*words):
        return pytest.approx(sum(RATINGS[word] for word in words) / len(words))

    texts = {
        "They were happy, and the sun was GREAT!": ["happy", "great"],
        '"Sad," said the sad dog.': ["sad", "sad"],
        "a self-confident, good-tempered cat": ["self-confident", "good"],
        "I love it :) :D": ["love", ":)", ":D"],
        "look:)": [],
        "I won’t": [],
        "The table has four legs.": [],
        "": [],
    }
    found = reward(f"lexicon:{lexicon}", of_texts(*texts))
    assert found == [mean(*words) if words else 0.0 for words in texts.values()]


@pytest.mark.data("vader")
def test_every_vader_word_alone_has_its_rating(data):
    lexicon = data / "vader/vader_lexicon.txt"
    ratings = dict(line.split("\t")[:2] for line in lexicon.read_text(encoding="utf-8").splitlines())
    words = [word for word in ratings if " " not in word]
    assert len(words) > 7400
    assert reward(f"lexicon:{lexicon}", of_texts(*words)) == [float(ratings[word]) for word in words]


def test_lexicon_mistakes_name_the_line(tmp_path):
    for text, message in [
        ("good\t1.9\nbad\n", r"lexicon\.txt:2: expected a word"),
        ("good\t1.9\n\nbad\tvery\n", r"lexicon\.txt:3: expected a word"),
        ("good\tnan\n", r"lexicon\.txt:1: expected a word"),
        ("\t1.0\n", r"lexicon\.txt:1: expected a word"),
        ("\n", "no words in it"),
    ]:
        (tmp_path / "lexicon.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            parse_rewards(f"lexicon:{tmp_path / 'lexicon.txt'}")
    with pytest.raises(ValueError, match="no such file"):
        parse_rewards("lexicon:none.txt")
    (tmp_path / "a:b.txt").write_text("good\t1.5\n")
    assert reward(f"lexicon:{tmp_path / 'a:b.txt'}", of_texts("Good.")) == [1.5]


def test_keywords_are_whole_words_and_phrases():
    completions = of_texts("Tea, please.", "steam teas", "green\n tea and MILK", "c++ milk: no")
    assert reward("keywords:tea", completions) == [1, 0, 1, 0]
    assert reward("keywords:green tea|milk", completions) == [0, 0, 1, 0.5]
    assert reward("keywords:c++|tea\\x2c please|milk:", completions) == pytest.approx([1 / 3, 0, 0, 2 / 3])


def test_several_rewards_keep_names_and_order():
    text = "length:1:2:\\x2c,keywords:a|b, length:1:2"
    assert [r.name for r in parse_rewards(text)] == ["length:1:2:\\x2c", "keywords:a|b", "length:1:2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing"),
        ("length:1:2,", "missing"),
        ("length:1:2:,", r"STOP is empty|missing"),
        ("length:40", "length:MIN:MAX"),
        ("length:5:4", "0 ≤ MIN ≤ MAX"),
        ("length:-1:4", "0 ≤ MIN ≤ MAX"),
        ("length:1.5:4", "length:MIN:MAX"),
        ("length:1:4:", "STOP is empty"),
        ("length:1:4:\\q", r"unknown escape \\q"),
        ("length:1:4:a\\", r"unknown escape \\"),
        ("length:1:4:\\x2", r"unknown escape"),
        ("lenght:1:4", r"unknown reward 'lenght:1:4'; known: length:.*lexicon:.*keywords:.*python:"),
        ("keywords:", "keywords:a"),
        ("keywords:a||b", "keywords:a"),
        ("keywords:a|A", "twice"),
        ("length:1:4,length:1:4", "length:1:4 is listed twice"),
        ("python:user_rewards", "python:user_rewards: expected module:function"),
        ("python:no_such_module:f", "no_such_module"),
        ("python:user_rewards:none", "no function none"),
        ("python:user_broken:f", "SyntaxError"),
    ],
)
def test_mistakes_end_in_one_line(user_module, text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_rewards(text)
    assert "\n" not in str(error.value)


def test_values_become_python_floats():
    found = Reward("mine", lambda completions: np.array([1, 2], np.int32))(of_texts("a", "b"))
    assert [type(value) for value in found] == [float, float]


def test_completions_have_one_entry_each():
    with pytest.raises(ValueError, match="answer: expected 2 entries, found 1"):
        of_texts("a", "b", answer=["x"])
