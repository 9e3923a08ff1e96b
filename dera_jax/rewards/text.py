"""Rewards read off a completion's text: its length, its sentiment, words and phrases, slots."""

import hashlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dera_jax.common.folders import no_such_file
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.slots import slot_coverage


def length(argument: str, spec: str) -> Callable[[Completions], list[float]]:
    """Returns `length:MIN:MAX[:STOP]`: 0 for MIN to MAX tokens, EOS left out, −1 outside.

    A completion that was cut off has no length yet: it is outside. With STOP only the tokens whose text
    starts before STOP's first occurrence count, and one that was cut off behind STOP has its length.

    References: Eq. 10.
    """
    low, _, rest = argument.partition(":")
    high, colon, stop = rest.partition(":")
    if not (re.fullmatch("[0-9]{1,9}", low) and re.fullmatch("[0-9]{1,9}", high) and int(low) <= int(high)):
        raise ValueError(f"--reward: expected length:MIN:MAX[:STOP] with 0 ≤ MIN ≤ MAX, found {spec!r}")
    if colon and not stop:
        raise ValueError(f"--reward: STOP is empty in {spec!r}; a comma is written \\x2c, a space \\x20")
    stop = _unescape(stop, spec)

    def reward(completions: Completions) -> list[float]:
        rows = zip(completions.known_tokens(), completions.finish_reasons, strict=True)
        counts = [_length_before(stop, tokens, reason, completions.decode) for tokens, reason in rows]
        return [0.0 if count is not None and int(low) <= count <= int(high) else -1.0 for count in counts]

    return reward


def _length_before(
    stop: str, tokens: Sequence[int], finish_reason: str, decode: Callable[[Sequence[int]], str]
) -> int | None:
    """Returns the number of tokens whose text starts before `stop`, or None if cut off before it.

    Token i's text starts where the text of the tokens before it ends, so the count is the fewest
    tokens that spell everything before `stop`. More tokens spell more, so bisection finds it, in
    log₂ of the length steps. With texts "Hi", ".\\n", "A" and stop "\\n", "Hi." takes two.

    A decoding that met its stop string has ended: without `stop` in the text, either that stop string
    was `stop` and is cut off, or another one closed the completion.
    """
    text = decode(tokens) if stop else ""
    position = text.find(stop) if stop else -1
    if position < 0:
        return None if finish_reason == "length" else len(tokens)
    # Compared as text, not by length: a character of several tokens shows as several "�" until it is whole.
    before = text[:position]
    few, enough = -1, len(tokens)
    while enough - few > 1:
        middle = (few + enough) // 2
        if decode(tokens[:middle]).startswith(before):
            enough = middle
        else:
            few = middle
    return enough


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.|$)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def _unescape(text: str, spec: str) -> str:
    r"""Returns `text` with \n, \t, \r, \\, \xHH, \uHHHH and \UHHHHHHHH decoded."""

    def decoded(match: re.Match) -> str:
        code = match[1]
        if len(code) > 1 and int(code[1:], 16) <= sys.maxunicode:
            return chr(int(code[1:], 16))
        if code in _ESCAPED:
            return _ESCAPED[code]
        raise ValueError(f"--reward: unknown escape {match[0]} in {spec!r}; a backslash is written \\\\")

    return _ESCAPE.sub(decoded, text)


def lexicon(argument: str, spec: str) -> Callable[[Completions], list[float]]:
    """Returns `lexicon:FILE`: the mean rated sentiment of the lexicon's words in a completion, 0 if none.

    A piece between spaces that the lexicon lists as it stands, an emoticon say, counts; else the words
    in it do, case ignored. Every occurrence counts. Phrases of several words are never found, as in VADER.

    FILE has VADER's format: word, mean rating, and what else there is, between tabs.
    """
    ratings = read_lexicon(argument, spec)

    def found(piece: str) -> list[float]:
        # As written first: ":D" and ":d" are two emoticons.
        for name in (piece, piece.lower()):
            if name in ratings:
                return [ratings[name]]
        words = _WORD.findall(piece.lower().replace("’", "'"))
        parts = [part for word in words for part in ([word] if word in ratings else word.split("-"))]
        return [ratings[part] for part in parts if part in ratings]

    def sentiment(completion: str) -> float:
        rated = [rating for piece in completion.split() for rating in found(piece)]
        return math.fsum(rated) / len(rated) if rated else 0.0

    def reward(completions: Completions) -> list[float]:
        return [sentiment(completion) for completion in completions.completions]

    told = "\n".join(f"{word}\t{rating!r}" for word, rating in sorted(ratings.items()))
    reward.fingerprint = hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return reward


_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def read_lexicon(path: str, spec: str) -> dict[str, float]:
    """Returns the mean rating of each word of a lexicon in VADER's format.

    Words are there as written and, unless the file lists that too, in lower case. Of a word that is
    listed several times the last rating stands, as in VADER.

    Raises:
      ValueError: no such file, nothing in it, or a line without a word and a finite rating.
    """
    if not Path(path).is_file():
        raise ValueError(f"--reward: {spec}: {no_such_file(Path(path))}")
    ratings: dict[str, float] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--reward: {spec}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, _, rest = line.partition("\t")
        try:
            rating = float(rest.partition("\t")[0])
        except ValueError:
            rating = math.nan
        if not word.strip() or not math.isfinite(rating):
            raise ValueError(f"{path}:{number}: expected a word, a tab and its rating, found {line!r:.60}")
        ratings[word.strip()] = rating
    if not ratings:
        raise ValueError(f"--reward: {spec}: no words in it")
    return {word.lower(): rating for word, rating in ratings.items()} | ratings


def keywords(argument: str, spec: str) -> Callable[[Completions], list[float]]:
    """Returns `keywords:a|b`: the share of the listed words or phrases that occur in a completion.

    Whole words, case ignored; any white space stands for a phrase's spaces.
    """
    phrases = [" ".join(_unescape(phrase, spec).split()) for phrase in argument.split("|")]
    if not all(phrases):
        raise ValueError(f"--reward: expected keywords:a|b with words between the bars, found {spec!r}")
    if len({phrase.lower() for phrase in phrases}) < len(phrases):
        raise ValueError(f"--reward: a word is listed twice in {spec!r}")
    patterns = [
        re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)", re.IGNORECASE)
        for phrase in phrases
    ]

    def share(completion: str) -> float:
        return sum(bool(pattern.search(completion)) for pattern in patterns) / len(patterns)

    return lambda completions: [share(completion) for completion in completions.completions]


def slots(argument: str, spec: str) -> Callable[[Completions], list[float]]:
    """Returns `slots`: the share of slots of a meaning representation that the completion says, see slots.py."""
    if spec != "slots":
        raise ValueError(f"--reward: expected slots, found {spec!r}")

    def coverage(prompt: str | Sequence[Mapping], given: object, completion: str) -> float:
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        return slot_coverage(asked if given is None else given, completion)

    def reward(completions: Completions) -> list[float]:
        given = completions.columns.get("meaning_representation", [None] * len(completions.prompts))
        return list(map(coverage, completions.prompts, given, completions.completions))

    return reward
