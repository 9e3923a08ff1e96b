"""How often each word follows each other in a text, kept beside the results so that the chain needs no data."""

import itertools
import json
import lzma
import re
from collections import Counter
from pathlib import Path

import numpy as np

from dera_jax.common.files import write_bytes
from dera_jax.policies.tokenizers import load_tokenizer

STOP = 0
"""The word before and behind every paragraph."""
UNIGRAM = 0.01
"""Share of the words' own frequency in every transition, so that none is 0."""


def count(text: str, tokenizer: Path) -> dict:
    """Returns the tokens that paragraphs use, and how often each pair of them is there, as JSON.

    Words are numbered from 1, in the order of `tokens`; 0 is the line break.
    """
    tokens = load_tokenizer(tokenizer)
    paragraphs = [line.strip() for line in re.split(r"\n+", text) if line.strip()]
    texts = [tokens(each, add_special_tokens=False)["input_ids"] for each in paragraphs]
    used = sorted({token for each in texts for token in each})
    number = {token: n for n, token in enumerate(used, start=1)}
    pairs: Counter = Counter()
    for each in texts:
        words = [STOP, *(number[token] for token in each), STOP]
        pairs.update(itertools.pairwise(words))
    return {"tokens": used, "pairs": [[*pair, times] for pair, times in sorted(pairs.items())]}


def write_counts(counts: dict, path: Path) -> None:
    """Writes counts as JSON compressed by xz, whole or not at all."""
    write_bytes(path, lzma.compress(json.dumps(counts, separators=(",", ":")).encode()))


def transitions(path: Path) -> np.ndarray:
    """Returns the probabilities of the next word after each, [words, words]."""
    counts = json.loads(lzma.decompress(path.read_bytes()))
    words = len(counts["tokens"]) + 1
    table = np.zeros((words, words))
    for before, after, times in counts["pairs"]:
        table[before, after] = times
    unigram = table.sum(0) / table.sum()
    return (1 - UNIGRAM) * table / table.sum(1, keepdims=True) + UNIGRAM * unigram
