"""Rewards: completions to numbers, named as users write them: `length:40:60:\\n`, `keywords:tea|milk`.

A reward's name is its specification, word for word; it is the reward's key in rows.
"""

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dera_jax.slots import slot_coverage


@dataclass(frozen=True)
class Completions:
    """What rewards see: one entry per completion in each field."""

    prompts: Sequence[str | Sequence[Mapping]]
    """Texts, or chats as lists of messages."""
    completions: Sequence[str]
    tokens: Sequence[Sequence[int]]
    """Ids of each completion, EOS left out."""
    finish_reasons: Sequence[str]
    """`eos`, `stop` (a stop string was met) or `length` (no room for more)."""
    decode: Callable[[Sequence[int]], str]
    """Ids to text, as the completions were made."""
    columns: Mapping[str, Sequence] = field(default_factory=dict)
    """The prompts' other fields."""

    def __post_init__(self):
        fields = {"prompts": self.prompts, "tokens": self.tokens, "finish_reasons": self.finish_reasons}
        for name, values in {**fields, **self.columns}.items():
            if len(values) != len(self.completions):
                raise ValueError(f"{name}: expected {len(self.completions)} entries, found {len(values)}")


@dataclass(frozen=True)
class Reward:
    """A function of completions that is held to its promise: one finite number, or None, for each."""

    name: str
    """The specification as written."""
    function: Callable[[Completions], Sequence[float | None]]
    weight: float = 1.0
    """In a sum of several; what the reward itself gives is not multiplied."""

    def check(self, prompts: Sequence[str | Sequence[Mapping]]) -> None:
        """Raises ValueError where the function has a `check` of its own that refuses the prompts."""
        if hasattr(self.function, "check"):
            self.function.check(prompts)

    def __call__(self, completions: Completions) -> list[float | None]:
        """Returns the reward of each completion; None where the reward does not apply.

        Raises:
          ValueError: the function returned another count, or what is no finite number.
        """
        found, expected = self.function(completions), len(completions.completions)
        if isinstance(found, (str, bytes, Mapping)) or not hasattr(found, "__len__"):
            raise ValueError(
                f"reward {self.name}: expected a list of {expected} numbers, found {found!r:.60}"
            )
        if len(found) != expected:
            raise ValueError(f"reward {self.name}: expected {expected} numbers, found {len(found)}")
        return [self._checked(value, position) for position, value in enumerate(found)]

    def _checked(self, value: object, position: int) -> float | None:
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        found = " ".join(f"{value!r:.60}".split())
        raise ValueError(
            f"reward {self.name}: expected a finite number or None, found {found} for completion {position}"
        )


def parse_rewards(text: str) -> tuple[Reward, ...]:
    """Returns the rewards that `text` lists between commas; files and modules are read now.

    Raises:
      ValueError: an unknown name, a broken specification, or one written twice.
    """
    rewards: dict[str, Reward] = {}
    for spec in (part.strip() for part in text.split(",")):
        if not spec:
            raise ValueError(
                f"--reward: a reward is missing in {text!r}; a comma inside one is written \\x2c"
            )
        if spec in rewards:
            raise ValueError(f"--reward: {spec} is listed twice")
        name, _, argument = spec.partition(":")
        if name not in KNOWN:
            raise ValueError(
                f"--reward: unknown reward {spec!r}; known: {', '.join(form for _, form in KNOWN.values())}"
            )
        make, _ = KNOWN[name]
        rewards[spec] = Reward(spec, make(argument, spec))
    return tuple(rewards.values())


def weigh_rewards(rewards: Sequence[Reward], weights: str | None) -> tuple[Reward, ...]:
    """Returns rewards with the weights in their sum that `weights` lists between commas; 1 each without it.

    Raises:
      ValueError: another count than that of the rewards, or what is no finite number.
    """
    if weights is None:
        return tuple(rewards)
    try:
        numbers = [float(part) for part in weights.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(rewards) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"--reward-weights: expected a number for each of {len(rewards)} rewards, found {weights!r}"
        )
    return tuple(replace(reward, weight=number) for reward, number in zip(rewards, numbers, strict=True))


def short_names(rewards: Sequence[Reward]) -> list[str]:
    """Returns the rewards' names, paths cut to their last part unless two rewards would have one name.

    >>> short_names([Reward("model:runs/judge", len), Reward("length:1:9", len)])
    ['model:judge', 'length:1:9']
    """
    short = [re.sub("^(model|lexicon):.*/(?=.)", r"\1:", reward.name) for reward in rewards]
    return short if len(set(short)) == len(short) else [reward.name for reward in rewards]


def length(argument: str, spec: str) -> Callable[[Completions], list[float]]:
    """Returns `length:MIN:MAX[:STOP]`: 0 for MIN to MAX tokens, EOS left out, −1 outside.

    With STOP only the tokens whose text starts before STOP's first occurrence count, and a completion
    that was cut off before it said STOP or ended is outside.

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
        rows = zip(completions.tokens, completions.finish_reasons, strict=True)
        counts = [
            _length_before(stop, tokens, reason, completions.decode) if stop else len(tokens)
            for tokens, reason in rows
        ]
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
    text = decode(tokens)
    position = text.find(stop)
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

    return lambda completions: [sentiment(completion) for completion in completions.completions]


_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def read_lexicon(path: str, spec: str) -> dict[str, float]:
    """Returns the mean rating of each word of a lexicon in VADER's format.

    Words are there as written and, unless the file lists that too, in lower case. Of a word that is
    listed several times the last rating stands, as in VADER.

    Raises:
      ValueError: no such file, nothing in it, or a line without a word and a finite rating.
    """
    if not Path(path).is_file():
        raise ValueError(f"--reward: {spec}: no such file")
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


def user_function(argument: str, spec: str) -> Callable[[Completions], Sequence[float | None]]:
    """Returns `python:module:function`, called as `f(prompts=…, completions=…, **columns)` like TRL's.

    `completion_ids` come along too, as in TRL. A function without `**kwargs` gets what it names.
    """
    function = _imported(argument, spec)
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}

    def reward(completions: Completions) -> object:  # whatever the user gives: `Reward` looks at it
        offered = {
            "completion_ids": [list(tokens) for tokens in completions.tokens],
            **{name: list(values) for name, values in completions.columns.items()},
            "prompts": list(completions.prompts),
            "completions": list(completions.completions),
        }
        arguments = {name: value for name, value in offered.items() if takes_all or name in names}
        try:
            found = function(**arguments)
            return (
                list(found)
                if isinstance(found, Iterable) and not isinstance(found, (str, Mapping))
                else found
            )
        except Exception as error:
            raise ValueError(f"reward {spec}: {_described(error)}") from error

    return reward


def _imported(argument: str, spec: str) -> Callable:
    module_name, _, name = argument.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise ValueError(f"--reward: expected python:module:function, found {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # As `python -m` does.
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"--reward: {spec}: {_described(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"--reward: {spec}: the module {module_name} has no function {name}")
    return function


def _described(error: Exception) -> str:
    """Returns an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def reward_model(argument: str, spec: str) -> Callable[[Completions], Sequence[float]]:
    """Returns `model:DIR`: what a reward model says of prompt and completion together."""
    # Named, not imported: rewards are read where there is no JAX.
    return importlib.import_module("dera_jax.reward_models").make(argument, spec)


KNOWN = {
    "length": (length, "length:MIN:MAX[:STOP]"),
    "lexicon": (lexicon, "lexicon:FILE"),
    "keywords": (keywords, "keywords:a|b"),
    "slots": (slots, "slots"),
    "model": (reward_model, "model:DIR"),
    "python": (user_function, "python:module:function"),
}
"""First word of a specification -> what makes its function from (the rest, the whole); how it is written."""
