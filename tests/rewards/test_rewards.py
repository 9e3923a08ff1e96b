"""Rewards: counted by hand, against brute force on stories, and on VADER's own file."""

import asyncio
import random
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from dera_jax import sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward, as_rewards, parse_rewards
from dera_jax.training.rollout import draw_rollout

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


def of_texts(*texts, **columns):
    """Returns completions whose tokens are their words."""
    tokens = [list(range(len(text.split()))) for text in texts]
    return Completions(
        [f"ask {i}" for i in range(len(texts))], texts, tokens, ["eos"] * len(texts), str, columns
    )


def reward(spec, completions):
    (found,) = parse_rewards(spec)
    return found(completions)


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


USER_REWARDS = """
import numpy as np

def lengths(prompts, completions, **columns):
    return [float(len(c) + len(p)) for p, c in zip(prompts, completions)]

def named(completions, answer):
    return [1 if a in c else None for a, c in zip(answer, completions, strict=True)]

def everything(prompts, completions, **columns):
    assert sorted(columns) == ["answer", "completion_ids", "other"], columns
    return np.array([len(ids) for ids in columns["completion_ids"]], np.float32)

def generated(completions, **columns):
    yield from (True for c in completions)

def chatting(prompts, completions, **columns):
    assert "trainer_state" not in columns and isinstance(prompts[0], list), columns
    return [float(len(c[0]["content"])) if isinstance(c, list) else -len(c) for c in completions]

async def later(completions, **columns):
    import asyncio
    async def one(c): await asyncio.sleep(0.001); return len(c)
    return await asyncio.gather(*map(one, completions))

def of_training(completions, trainer_state, log_metric, log_extra):
    log_metric("mean", 1.0), log_extra("seen", [1] * len(completions))
    return [trainer_state.global_step] * len(completions)

def last_id(completions, completion_ids): return [ids[-1] for ids in completion_ids]

def short(completions, **columns): return [1.0]
def nothing(completions, **columns): pass
def text(completions, **columns): return "ab"
def words(completions, **columns): return ["1", "2"]
def nan(completions, **columns): return [0.0, np.nan]
def infinite(completions, **columns): return [float("-inf"), 0.0]
def fails(completions, **columns): raise KeyError("the\\nkey")
def demands(completions, missing): return [0.0, 0.0]
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "user_rewards", raising=False)
    (tmp_path / "user_rewards.py").write_text(USER_REWARDS)
    (tmp_path / "user_broken.py").write_text("def f(:")


def test_user_functions_have_trls_signature(user_module):
    completions = of_texts("yes sir", "no", answer=["yes", "yes"], other=[1, 2])
    assert reward("python:user_rewards:lengths", completions) == [12.0, 7.0]
    assert reward("python:user_rewards:named", completions) == [1.0, None]
    assert reward("python:user_rewards:everything", completions) == [2.0, 1.0]
    found = reward("python:user_rewards:generated", completions)
    assert found == [1.0, 1.0]
    assert {type(value) for value in found} == {float}


def test_user_functions_see_chats_as_trl_shows_them(user_module):
    """As TRL's GRPOTrainer calls them: messages for chats, async functions awaited, the state of the training."""
    chat = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": prompt, "completion": text, "tokens": [5, 2], "length": 1, "finish_reason": "eos"}
        for prompt, text in ((chat, "Hello"), ("Once", " upon"))
    ]
    seen = Completions.of(rows, [{}, {}], str, step=3)
    assert reward("python:user_rewards:chatting", seen) == [5.0, -5.0]
    assert reward("python:user_rewards:later", seen) == [1.0, 5.0]
    assert reward("python:user_rewards:of_training", seen) == [3.0, 3.0]
    assert reward("python:user_rewards:last_id", seen) == [2.0, 2.0]  # EOS is there, as in TRL
    assert seen.tokens == [[5], [5]]

    async def within_a_loop():
        return reward("python:user_rewards:later", seen)

    assert asyncio.run(within_a_loop()) == [1.0, 5.0]


def test_training_and_sweeps_show_a_reward_the_same(pair):
    """One builder of what is seen: the start of an answer belongs to the prompt in both."""
    seen = {"training": [], "sweep": []}
    for prompt in (
        {"prompt": "Once", "prefix": " upon"},
        {"turns": ["Hi"], "prefix": "Lily", "topic": "tales"},
    ):
        policies = tuple(
            replace(p, template="{% for m in messages %}{{ m.content }}\n{% endfor %}") for p in pair
        )

        def note(kind):
            def f(prompts, completions, **columns):
                seen[kind].append((prompts[0], type(completions[0]), sorted(columns)))
                return [0.0] * len(prompts)

            return as_rewards({"f": f})

        list(sweep(policies, [prompt], [0.0], note("sweep"), max_new_tokens=4, rows=2))
        encoded = encode_prompts(policies[:1], [Prompt.of(prompt)], 4)
        draw_rollout(*policies, encoded, 2, note("training"), DecodeConfig(max_new_tokens=4), 0)
    assert seen["training"] == seen["sweep"]
    assert seen["sweep"][0][:2] == ("Once upon", str)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Lily"}]
    assert seen["sweep"][1] == (said, list, ["completion_ids", "topic"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "expected 2 numbers, found 1"),
        ("nothing", "expected a list of 2 numbers, found None"),
        ("text", "expected a list of 2 numbers, found 'ab'"),
        ("words", "expected a finite number or None, found '1' for completion 0"),
        ("nan", ".*found nan for completion 1"),
        ("infinite", ".*found -inf for completion 0"),
        ("fails", "KeyError: 'the.*key'"),
        ("demands", "TypeError: .*'missing'"),
    ],
)
def test_user_functions_are_held_to_it(user_module, name, message):
    spec = f"python:user_rewards:{name}"
    with pytest.raises(ValueError, match=f"^reward {re.escape(spec)}: {message}") as error:
        reward(spec, of_texts("a", "b"))
    assert "\n" not in str(error.value)
    if name == "fails":
        assert isinstance(error.value.__cause__, KeyError)


def test_values_become_python_floats():
    found = Reward("mine", lambda completions: np.array([1, 2], np.int32))(of_texts("a", "b"))
    assert [type(value) for value in found] == [float, float]


def test_completions_have_one_entry_each():
    with pytest.raises(ValueError, match="answer: expected 2 entries, found 1"):
        of_texts("a", "b", answer=["x"])
