"""The reward `concepts`: which words a prompt asks for are said, in whatever form: "run" by "ran" and "running"."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from dera_jax.rewards.completions import Completions

WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def concepts(argument: str, spec: str) -> Callable[[Completions], list[float | None]]:
    """Returns `concepts`: the share of the words of a prompt's column `concepts` that a completion says in any form.

    The column is a list of English words, or one text with # between them; a part of speech behind a word (`run_V`) is
    left out. A prompt without the column has no number.

    References: Lin et al. 2020, CommonGen, arXiv:1911.03705 (coverage).
    """
    if spec != "concepts" and argument:
        raise ValueError(
            f"--reward: expected concepts, which reads each prompt's column of that name, found {spec!r}"
        )
    inflections("word")  # what is missing is told before anything is decoded

    def reward(completions: Completions) -> list[float | None]:
        asked = completions.columns.get("concepts", [None] * len(completions.completions))
        return [coverage(words, said) for words, said in zip(asked, completions.completions, strict=True)]

    return reward


def coverage(words: str | Sequence[str] | None, text: str) -> float | None:
    """Returns the share of words that occur in a text in any form; None if there are none.

    >>> coverage("dog_N#run_V", "Two dogs ran home.")
    1.0
    """
    words = split_concepts(words)
    if not words:
        return None
    said = {word.lower() for word in WORD.findall(text)}
    return sum(not said.isdisjoint(inflections(word)) for word in words) / len(words)


def split_concepts(words: str | Sequence[str] | None) -> list[str]:
    """Returns the words of a prompt's column.

    Raises:
      ValueError: it is neither text nor a list of texts.
    """
    if words is None:
        return []
    parts = words.split("#") if isinstance(words, str) else words
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"concepts: expected a list of words, or a text with # between them, found {words!r:.60}"
        )
    return [word for part in parts if (word := part.partition("_")[0].strip().lower())]


@lru_cache(maxsize=65536)
def inflections(word: str) -> frozenset[str]:
    """Returns the forms of an English word, itself among them.

    Raises:
      ValueError: the library that knows them is not installed.
    """
    try:
        from lemminflect import getAllInflections
    except ImportError:
        raise ValueError(
            '--reward: concepts: expected the package lemminflect; pip install "dera_jax[concepts]"'
        ) from None
    forms = {form.lower() for some in getAllInflections(word).values() for form in some}
    return frozenset({*forms, word.lower()})
