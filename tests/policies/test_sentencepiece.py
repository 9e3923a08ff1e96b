"""Tokenizers that are a model of sentencepiece alone, as T5 1.1, mT5 and Llama 2 ship them."""

import json
from itertools import pairwise

import pytest
from transformers.convert_slow_tokenizer import import_protobuf

from dera_jax.policies.hub import FILES
from dera_jax.policies.tokenizers import load_tokenizer

WORDS = [
    "▁",
    *"abcdefghijklmnopqrstuvwxyz.",
    "▁t",
    "he",
    "▁the",
    "▁do",
    "og",
    "▁dog",
    "▁r",
    "an",
    "▁ran",
    "do",
    "th",
]
TEXTS = ["the dog ran.", "dogs and then", "thethe  dog", "x", "a theran og"]
KINDS = {
    "unigram": ("spiece.model", "T5Tokenizer", "t5"),
    "merges": ("tokenizer.model", "LlamaTokenizer", "llama"),
}


def write_model(folder, kind):
    """Writes a small model and what stands beside it; returns pieces and their scores."""
    file, name, family = KINDS[kind]
    proto = import_protobuf().ModelProto()
    special = ["<pad>", "</s>", "<unk>"] if kind == "unigram" else ["<unk>", "<s>", "</s>"]
    pieces = {piece: -1.0 - 0.1 * number**1.1 for number, piece in enumerate(WORDS)}
    for piece in (*special, *pieces):
        added = proto.pieces.add()
        added.piece, added.score = piece, pieces.get(piece, 0.0)
        added.type = 1 if piece in pieces else 2 if piece == "<unk>" else 3
    proto.trainer_spec.model_type = 1 if kind == "unigram" else 2
    proto.trainer_spec.unk_id = special.index("<unk>")
    proto.normalizer_spec.name, proto.normalizer_spec.add_dummy_prefix = "identity", True
    (folder / file).write_bytes(proto.SerializeToString())
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    settings = {"tokenizer_class": name, "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return pieces


def best_split(text, pieces):
    """Returns the pieces of the largest sum of scores."""
    best = {0: (0.0, [])}
    for end in range(1, len(text) + 1):
        ways = [
            (best[start][0] + pieces[text[start:end]], [*best[start][1], text[start:end]])
            for start in range(end)
            if start in best and text[start:end] in pieces
        ]
        best[end] = max(ways)
    return best[len(text)][1]


def merged(text, pieces):
    """Returns the pieces that are left when the neighbours of the best score are joined, again and again."""
    parts = list(text)
    while ways := [(pieces[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in pieces]:
        number = -max(ways)[1]
        parts[number : number + 2] = ["".join(parts[number : number + 2])]
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_split_as_sentencepiece_says(kind, tmp_path):
    pieces = write_model(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path)
    assert KINDS[kind][0] in FILES
    for text in TEXTS:
        found = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)
        written = "▁" + text.replace(" ", "▁")
        if kind == "unigram":
            written = "▁" + "▁".join(text.split())  # T5's tokenizer joins spaces
        assert found == (best_split if kind == "unigram" else merged)(written, pieces), text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"<html>", b"\n\x0e\n\x05<unk>\x15\x00", b"\xff" * 1000]
)
def test_broken_models_are_told_by_their_name(kind, content, tmp_path):
    write_model(tmp_path, kind)
    (tmp_path / KINDS[kind][0]).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the tokenizer cannot be read: {KINDS[kind][0]} is no model of sentencepiece, or one that "
        "transformers cannot convert"
    )
