"""What rows show: rewards, quality, and the objectives that a strength may be chosen by."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from dera_jax.analysis.summaries import drawn_tokens
from scripts.reproduce.evidence import Quantity, Rows

COHERENCE = ("likelihood", "known words")
"""Qualities by which texts at large strengths are judged."""
_WORD = re.compile(r"[a-z']+")


def reward(start: str) -> Quantity:
    """Returns the reward whose name starts so."""

    def quantity(row: dict) -> float | None:
        return next((value for name, value in row["rewards"].items() if name.startswith(start)), None)

    return quantity


def reward_by(folder: str) -> Quantity:
    """Returns the reward of the model in such a folder, wherever all work lay when it was measured."""

    def quantity(row: dict) -> float | None:
        return next((value for name, value in row["rewards"].items() if name.endswith("/" + folder)), None)

    return quantity


def length(row: dict) -> float:
    """Returns a completion's length in tokens."""
    return row["length"]


def kl(row: dict) -> float:
    """Returns a completion's KL to the reference, in nats."""
    return row["kl_to_reference"]


def likelihood(row: dict) -> float:
    """Returns the log-probability per token under the untouched model, in nats."""
    return row["reference_logprob"] / max(1, drawn_tokens(row))


def variety(row: dict) -> float:
    """Returns the share of a text's word pairs that it has not said before, in [0, 1]."""
    words = _WORD.findall(row["completion"].lower())
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def known_words(known: set[str]) -> Quantity:
    """Returns the share of a text's words that are known ones, in [0, 1]."""

    def quantity(row: dict) -> float:
        words = _WORD.findall(row["completion"].lower())
        return sum(word in known for word in words) / len(words) if words else 1.0

    return quantity


def words_of(path: Path) -> set[str]:
    """Returns the words of a text that come at least twice."""
    counts = Counter(_WORD.findall(path.read_text(encoding="utf-8").lower()))
    return {word for word, count in counts.items() if count > 1}


def bleu(rows: Rows, references: dict[str, list[str]]) -> float:
    """Returns sacrebleu's corpus BLEU, 0 to 100, each text against all that people wrote for its prompt."""
    import sacrebleu

    most = max(map(len, references.values()))
    several: list[Sequence[str]] = [references[row["prompt_id"]] for row in rows]
    streams = [[each[n] if n < len(each) else None for each in several] for n in range(most)]
    return sacrebleu.corpus_bleu([row["completion"] for row in rows], streams).score


def sentence_bleu(references: dict[str, list[str]]) -> Quantity:
    """Returns sacrebleu's BLEU of one text, 0 to 100: smoothed, so that its mean is not the corpus' BLEU."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)

    @cache
    def score(prompt: str, text: str) -> float:
        return metric.sentence_score(text, references[prompt]).score

    return lambda row: score(row["prompt_id"], row["completion"])


def less(gain: Quantity, price: float, paid: Quantity) -> Quantity:
    """Returns a gain less what it costs at a price."""

    def quantity(row: dict) -> float | None:
        value, cost = gain(row), paid(row)
        return None if value is None or cost is None else value - price * cost

    return quantity


def both(one: Quantity, other: Quantity) -> Quantity:
    """Returns the sum of two."""
    return less(one, -1.0, other)


def gold(row: dict) -> float | None:
    """Returns the known reward of the gold experiments: a story shall be happy, and be English.

    The mean rating of its words in the lexicon, −4 to 4, plus the log-probability per token under the
    untouched model, in nats. A reward model that learns from the reference's own samples, all of them fluent, sees
    the second part badly: what over-optimizes it loses there.
    """
    return both(reward("lexicon"), likelihood)(row)
