"""Ends of completions: EOS, stop texts and lengths, found as tokens come, whatever the pieces they come in."""

import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from dera_jax.common.checks import take_plain_numbers
from dera_jax.data.tokens import decode_completion
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.endings import Endings
from dera_jax.policies.policy import TOY
from dera_jax.policies.tokenizers import load_tokenizer
from scripts import llama2c
from scripts.llama2c import SPECIAL

TOKENIZER = load_tokenizer(TOY / "reference")
PROMPT = TOKENIZER("Mira visits Ida,").input_ids
WORDS = ["the", " the", "ñ", "🎻", " a b c", "\n", "x", " painter of", "é"]
"""Those with accents and the violin are several tokens each here, none of which is a character."""
EOS = TOKENIZER.eos_token_id


def end_of(tokens, stop, chunk, limit=200, eos=(EOS,)):
    """Returns how tokens end that come `chunk` at a time."""
    endings, known = Endings(TOKENIZER, eos, stop, limit), 0
    while known < len(tokens):
        end = endings.find(PROMPT, tokens[: known + chunk], known)
        if end:
            return end
        known += chunk
    return None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12),
    st.lists(
        st.sampled_from(["the p", "b", "a b c", "ñ", "🎻x", "\n", "th", " painter"]), min_size=1, max_size=3
    ),
    st.integers(1, 16),
)
def test_the_stop_text_that_is_whole_first_ends_a_completion(words, stop, chunk):
    tokens = TOKENIZER("".join(words), add_special_tokens=False).input_ids
    texts = [decode_completion(TOKENIZER, PROMPT, tokens[:n]) for n in range(len(tokens) + 1)]
    first = next((n for n, text in enumerate(texts) if any(s in text for s in stop)), None)
    end = end_of(tokens, stop, chunk)
    if first is None:
        assert end is None
    else:
        cut = min(texts[first].find(s) for s in stop if s in texts[first])
        assert end == (first, "stop", texts[first][:cut])


@pytest.mark.parametrize("stop", ["the p", "b", "a b c", " painter of", "x\n"])
def test_a_stop_text_is_met_where_transformers_meets_it(stop):
    tokens = TOKENIZER("hello a b c, the painter of x\nand", add_special_tokens=False).input_ids
    met = StopStringCriteria(TOKENIZER, [stop])
    count = next(n for n in range(1, len(tokens)) if met(torch.tensor([tokens[:n]]), None).any())
    assert end_of(tokens, [stop], 16).count == count


def test_of_two_stop_texts_the_one_that_is_whole_first_cuts():
    tokens = TOKENIZER("hello a b c", add_special_tokens=False).input_ids
    for chunk in (1, 2, 16):
        end = end_of(tokens, ["b", "a b c"], chunk)
        assert end.text == decode_completion(TOKENIZER, PROMPT, tokens[: end.count]).removesuffix("b")


def test_eos_and_the_longest_length_end_what_no_stop_text_does():
    tokens = TOKENIZER("the painter the painter", add_special_tokens=False).input_ids
    ended = [*tokens[:3], EOS, *tokens[3:]]
    for chunk in (1, 3, 16):
        assert end_of(ended, [], chunk)[:2] == (4, "eos")
        assert end_of(ended, ["ter the"], chunk)[:2] == (4, "eos")  # not behind EOS
        assert end_of(tokens, [], chunk, limit=2)[:2] == (2, "length")
        assert end_of(tokens, [], chunk) is None


def test_text_is_decoded_once_however_long_it_is(monkeypatch):
    """What is decoded for every token does not grow with the completion."""
    decoded = []
    monkeypatch.setattr(
        "dera_jax.decoding.endings.decode_completion",
        lambda reader, prompt, tokens, **more: (
            decoded.append(len(tokens)) or decode_completion(reader, prompt, tokens, **more)
        ),
    )
    tokens = TOKENIZER("the painter " * 200, add_special_tokens=False).input_ids
    end_of(tokens, ["never said"], 16, limit=10**6)
    assert max(decoded) < 64


def test_one_stop_text_is_not_taken_letter_by_letter():
    assert DecodeConfig(stop="END").stop == ("END",)


def test_numbers_of_numpy_and_jax_become_pythons_own():
    @dataclass(frozen=True)
    class Settings:
        """As those of `configs`, whose annotations are checked while tests run."""

        count: object
        number: object
        text: str = "a"

    made = Settings(np.int64(5), jnp.float32(0.25))
    take_plain_numbers(made)
    assert made == Settings(5, 0.25)
    assert (type(made.count), type(made.number)) == (int, float)


@pytest.mark.parametrize("stop", ["<pad>", "<pad> the", "the<pad>", "ter<pad> the p", "<pad><pad>", "the p"])
def test_special_tokens_in_stop_texts_are_met_where_transformers_meets_them(stop):
    """And leave no text: neither those in the stop text nor others before it."""
    said = [TOKENIZER(each, add_special_tokens=False).input_ids for each in (" the", " painter", " of x")]
    the, painter, rest = said
    pad, bos = TOKENIZER.pad_token_id, TOKENIZER.bos_token_id
    tokens = [bos, *the, pad, *the, *painter, pad, *the, *painter, pad, pad, *rest]
    met = StopStringCriteria(TOKENIZER, [stop])
    count = next(n for n in range(1, len(tokens)) if met(torch.tensor([tokens[:n]]), None).any())
    whole = TOKENIZER.decode(tokens[:count])
    text = whole[: whole.index(stop)].replace("<pad>", "").replace("<s>", "")
    for chunk in (1, 3, 16):
        end = end_of(tokens, [stop], chunk)
        assert (end.count, end.reason) == (count, "stop")
        assert end.text.strip() == text.strip()


def test_eos_ends_before_a_stop_text_of_itself_is_looked_for():
    tokens = [*TOKENIZER("the painter", add_special_tokens=False).input_ids, EOS]
    assert end_of(tokens, [TOKENIZER.eos_token], 16)[:2] == (len(tokens), "eos")


BYTES = llama2c.tokenizer([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "x", "▁x"])
OF_BYTES = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(BYTES)), eos_token="</s>")


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.text("x é🎻", max_size=4),
    st.binary(max_size=3),
    st.text("x é🎻日", max_size=4),
    st.integers(1, 16),
)
def test_bytes_that_are_no_character_hide_no_stop_text(ahead, noise, behind, chunk):
    """Of byte tokens: a stop text counts once its last byte is there, whatever comes behind it."""
    data = [*ahead.encode(), *"🙂".encode(), *noise, *behind.encode()]
    prompt, tokens = (
        OF_BYTES.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in each]) for each in ("é".encode(), data)
    )
    endings, known = Endings(OF_BYTES, (), ["🙂"], 200), 0
    while not (end := endings.find(prompt, tokens[: known + chunk], known)):
        known += chunk
    assert end == (len(ahead.encode()) + 4, "stop", ahead)
