"""Text to ids and back: nothing is lost at the border between a prompt and its completion."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from dera_jax.common.json_files import write_json
from dera_jax.data.buckets import SMALLEST_BUCKET, bucket_length, pad_left
from dera_jax.data.tokens import decode_completion, encode_completion, encode_prompt
from dera_jax.policies.tokenizers import load_tokenizer
from scripts import llama2c
from scripts.llama2c import BYTES, SPECIAL

TEMPLATE = """\
{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools
here') }}{% endif %}{{ bos_token }}[{{ message.role }}] {{ message.content }}</s>
{% endfor %}{% if add_generation_prompt %}[assistant]
{% endif %}"""
CHAT = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def texts(stand_ins):
    """200 stories: an empty line sets paragraphs apart, a line's end alone stories."""
    stored = (stand_ins / "tinystories/tiny_stories_head.txt").read_text()
    split = re.split(r"(?<!\n)\n(?!\n)", stored)
    return [story for story in split if len(story.split()) > 30][:200]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    """A tokenizer of the kind of Llama 2 and of stories260K: a space before the first word, bytes for rare letters.

    BOS is EOS too.
    """
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = Metaspace()
    # Of words alone: line breaks are no letters to such tokenizers, and spelled in bytes.
    words = (" ".join(text.split()) for text in texts)
    trained.train_from_iterator(words, BpeTrainer(vocab_size=250, show_progress=False))
    learned = sorted(trained.get_vocab(), key=trained.token_to_id)
    letters = [word for word in learned if len(word) == 1]
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(BYTES)), *learned[len(letters) :], *letters]
    path = tmp_path_factory.mktemp("tokenizer")
    write_json(path / "tokenizer.json", llama2c.tokenizer(words))
    write_json(path / "tokenizer_config.json", llama2c.tokenizer_config(512))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def chat(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def words_and_spaces(text):
    return re.findall(r"\s*\S+|\s+$", text)


def test_stories_come_back_cut_anywhere(tokenizer, texts):
    generator = np.random.default_rng(0)
    as_one = 0
    for text in texts:
        cut = int(generator.integers(1, len(text)))
        prompt = encode_prompt(tokenizer, text[:cut])
        completion = encode_completion(tokenizer, prompt, text[cut:])
        assert decode_completion(tokenizer, prompt, completion) == text[cut:]
        as_one += prompt + completion == tokenizer(text).input_ids
    # Many a cut goes through a token; at the others the ids are those of the whole text.
    assert as_one > 0.3 * len(texts)


def test_between_words_the_ids_are_those_of_the_whole(tokenizer, texts):
    for text in texts:
        words = words_and_spaces(text)
        before, after = "".join(words[:20]), "".join(words[20:])
        prompt = encode_prompt(tokenizer, before)
        completion = encode_completion(tokenizer, prompt, after)
        assert prompt + completion == tokenizer(text).input_ids
        # A completion still growing is a start of it, but for a character whose last bytes are to come.
        for end in range(0, len(completion), 7):
            grown = decode_completion(tokenizer, prompt, completion[:end])
            assert after.startswith(grown.rstrip("\ufffd"))


BORDERS = [
    ("Once upon a ti", "me there was"),
    ("She said: ", "Hello"),
    ("She said:", " Hello"),
    ("She said:", "  Hello "),
    ("She said:", "\n\nHello"),
    ("She said:\n", "Hello"),
    ("She said:\n", "\nHello"),
    ("The word 你好我", "\n好!"),
    ("A smile 😀é", "é😀"),
    ("Once", ""),
]


@pytest.mark.parametrize(("before", "after"), BORDERS)
def test_borders_of_every_kind(tokenizer, before, after):
    prompt = encode_prompt(tokenizer, before)
    assert decode_completion(tokenizer, prompt, encode_completion(tokenizer, prompt, after)) == after


@settings(deadline=None, max_examples=300)
@given(st.text("ab .\né你😀", min_size=1, max_size=12), st.text("ab .\né你😀", max_size=12))
def test_any_text_comes_back(tokenizer, before, after):
    prompt = encode_prompt(tokenizer, before)
    assert decode_completion(tokenizer, prompt, encode_completion(tokenizer, prompt, after)) == after


@pytest.fixture(scope="module")
def byte_level(texts):
    """A tokenizer of the kind of GPT-2 and Llama 3: no space before the first word, no BOS here."""
    model = Tokenizer(BPE())
    model.pre_tokenizer, model.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    model.train_from_iterator(
        texts, BpeTrainer(vocab_size=600, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=model)


@settings(deadline=None, max_examples=200)
@given(
    st.text("ab .\né你😀🙂", min_size=1, max_size=6),
    st.text("a é你😀🙂", min_size=1, max_size=6),
    st.booleans(),
    st.data(),
)
def test_a_completion_cut_within_a_character_spoils_none_before_it(
    tokenizer, byte_level, before, after, special, data
):
    """Neither its own nor the prompt's; a character that the prompt begins is the completion's."""
    for reader in (tokenizer, byte_level):
        prompt = encode_prompt(reader, before)
        completion = encode_completion(reader, prompt, after)
        end = data.draw(st.integers(0, len(completion)))
        text = decode_completion(reader, prompt, completion[:end], special=special)
        assert after.startswith(text.rstrip("\ufffd")) and text.count("\ufffd") <= 3
        rest = decode_completion(reader, [*prompt, *completion[:end]], completion[end:], special=special)
        assert text.rstrip("\ufffd") + rest == after


def test_bytes_that_are_no_character_are_replaced_in_the_completion_alone(tokenizer):
    prompt = encode_prompt(tokenizer, "I like 🙂")
    bad = tokenizer.convert_tokens_to_ids(["<0x99>", "<0xF0>"])
    assert decode_completion(tokenizer, prompt, bad) == "\ufffd\ufffd"
    assert decode_completion(tokenizer, prompt, bad[:1]) == "\ufffd"


def test_a_line_break_begins_a_completion_where_two_are_one_token():
    """Of the kind of Llama 2, whose decoder takes a space from a text's start."""
    words = ["<unk>", "▁", "a", "b", "\n", "\n\n", "▁a", "|", *(f"{x}\n" for x in "ab")]
    model = Tokenizer(
        BPE(
            {w: n for n, w in enumerate(words)},
            [("\n", "\n"), ("▁", "a"), ("a", "\n"), ("b", "\n")],
            unk_token="<unk>",
        )
    )
    model.pre_tokenizer, model.decoder = Metaspace(split=False), MetaspaceDecoder()
    reader = PreTrainedTokenizerFast(tokenizer_object=model)
    for before, after in (("a", "\n"), ("a", "\nb"), ("a b", "\n\nb"), ("a", "b"), ("b\n", "\n a")):
        prompt = encode_prompt(reader, before)
        assert decode_completion(reader, prompt, encode_completion(reader, prompt, after)) == after


def test_byte_level_tokenizers(byte_level, texts):
    tokenizer = byte_level
    for before, after in BORDERS + [(text[:50], text[50:]) for text in texts[:50]]:
        prompt = encode_prompt(tokenizer, before)
        assert decode_completion(tokenizer, prompt, encode_completion(tokenizer, prompt, after)) == after


def test_prompts_begin_with_one_bos_and_end_without_eos(tokenizer):
    ids = encode_prompt(tokenizer, "Once upon a time")
    assert ids[0] == 1 and ids.count(1) == 1
    # BOS is EOS too: what the text says at its end is the text's.
    assert encode_prompt(tokenizer, "Once upon a time<s>") == tokenizer("Once upon a time<s>").input_ids
    assert encode_prompt(tokenizer, "Once upon", prefix=" a time") == ids
    # BOS alone is a prompt: it asks for a story. Here it is EOS too, and stays.
    assert encode_prompt(tokenizer, "") == [1]


def test_a_tokenizer_that_ends_texts_with_eos(folder):
    ends = load_tokenizer(folder)
    plain = encode_prompt(ends, "Lily had a")
    ends.backend_tokenizer.post_processor = TemplateProcessing("<s> $A <s>", special_tokens=[("<s>", 1)])
    assert ends("Lily had a").input_ids == [*plain, 1]
    assert encode_prompt(ends, "Lily had a") == plain
    # What the text says itself stays, however often: the tokenizer's BOS before it, unless it says one, and no EOS.
    for text in ("Lily had a<s>", "Lily had a<s><s>"):
        assert encode_prompt(ends, text) == [1, *ends(text, add_special_tokens=False).input_ids]
    for text in ("<s><s>Lily had a", "<s>Lily<s>", "<s>", "<s><s>"):
        assert encode_prompt(ends, text) == ends(text, add_special_tokens=False).input_ids
    assert encode_completion(ends, plain, " dog") == ends("Lily had a dog").input_ids[len(plain) : -1]


def test_long_texts_are_no_warning_of_the_library(folder, caplog):
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = 8
    assert len(encode_prompt(tokenizer, "Once upon a time " * 9)) > 8
    assert not caplog.records


def test_special_tokens_leave_no_text(tokenizer):
    prompt = encode_prompt(tokenizer, "Lily had a")
    dog = encode_completion(tokenizer, prompt, " dog")
    assert decode_completion(tokenizer, prompt, [*dog, 1]) == " dog"
    assert decode_completion(tokenizer, [1], encode_prompt(tokenizer, "Lily")[1:]) == "Lily"


def test_chats_go_through_the_template(chat):
    ids = encode_prompt(chat, None, CHAT)
    assert " ".join(chat.decode(ids[1:]).split()) == "[user] Tell me a story.</s> [assistant]"
    assert ids.count(1) == 1
    assert ids == chat.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    started = encode_prompt(chat, None, CHAT, prefix="Once upon")
    assert started[: len(ids)] == ids and chat.decode(started).endswith("[assistant]\nOnce upon")


@pytest.mark.parametrize("answer", ["Once upon a time", " Once", "\nOnce", "", "- one\n- two"])
def test_answers_come_back(chat, answer):
    prompt = encode_prompt(chat, None, CHAT)
    assert decode_completion(chat, prompt, encode_completion(chat, prompt, answer)) == answer
    assert encode_prompt(chat, None, CHAT, prefix=answer) == prompt + encode_completion(chat, prompt, answer)


def test_chats_that_cannot_be_read(tokenizer, chat):
    with pytest.raises(
        ValueError,
        match=r"^the prompt has `messages`, but the tokenizer has no chat template; --chat-template=FILE gives one$",
    ):
        encode_prompt(tokenizer, None, CHAT)
    with pytest.raises(ValueError, match=r"^the chat template refuses the messages: no tools here$"):
        encode_prompt(chat, None, [{"role": "tool", "content": "42"}])


def test_a_prompt_without_tokens():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(ValueError, match=r"^the prompt is empty: it has no tokens$"):
        encode_prompt(words, "")
    none = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0}, [])))
    with pytest.raises(ValueError, match=r"^the tokenizer, of 1 tokens, makes none of the prompt$"):
        encode_prompt(none, "b")
    lacking = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})))
    with pytest.raises(ValueError, match=r"^the tokenizer of  fails: WordLevel error: Missing \[UNK\]"):
        encode_prompt(lacking, "b")


def test_patterns_of_a_tokenizer_that_never_end():
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = Split(Regex("(([a-z])+)+!"), "isolated")
    with pytest.raises(ValueError, match=r"^the tokenizer of  fails: .*retry-limit"):
        encode_prompt(PreTrainedTokenizerFast(tokenizer_object=words), "a" * 60)


@given(st.integers(0, 100_000))
def test_buckets_are_powers_of_two_and_fit(length):
    bucket = bucket_length(length)
    assert bucket >= length and bucket >= SMALLEST_BUCKET and bucket & (bucket - 1) == 0
    # None smaller would do.
    assert bucket == SMALLEST_BUCKET or bucket // 2 < length


@pytest.mark.parametrize("tokens", [[], [5], [7, 8, 9, 10]])
def test_padding_stands_on_the_left(tokens):
    padded, mask = pad_left(tokens, 4)
    assert padded.shape == mask.shape == (1, 4) and padded.dtype == np.int32 and mask.dtype == bool
    assert padded[mask].tolist() == tokens and not padded[~mask].any()
    assert mask[0].tolist() == sorted(mask[0].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", ["from transformers import AutoModelForCausalLM", "import transformers", ""]
)
def test_a_tokenizer_loads_whatever_was_imported_before(before, toy):
    """transformers has a function and a module of one name; which of the two it shows hangs on what came first."""
    code = f"""{before}
from pathlib import Path
from dera_jax.policies.tokenizers import load_tokenizer
load_tokenizer(Path({str(toy)!r}))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
