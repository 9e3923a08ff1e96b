"""Judges: which of two completions is better, by a reward or by a language model; how good is one.

A judge takes pairs of rows and gives a verdict on each. A reward prefers the larger number. A language
model sees both completions, in an order drawn for each pair, for models lean to what they read first.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from dera_jax.common.checks import check_choice, check_number
from dera_jax.common.json_files import encode_json
from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.endpoint import Answer, Endpoint
from dera_jax.rewards.of_rows import Decode, judge
from dera_jax.rewards.questions import (
    COMPARISONS,
    GRADES,
    Messages,
    compare_messages,
    grade_messages,
    read_preference,
)
from dera_jax.rewards.registry import Reward, parse_rewards

Pair = tuple[dict, dict]
"""Rows of A and of B that answer one prompt."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a pair."""

    win: float | None
    """Share that goes to A: 1, 0, ½ for a tie; None if there is no verdict (nothing readable, no reward)."""
    first: float | None = None
    """Share that goes to what was shown first; None where nothing was shown."""


Judge = Callable[[Sequence[Pair]], list[Verdict]]


def parse_judge(
    spec: str,
    question: str = "chat",
    *,
    both_orders: bool = False,
    seed: int = 0,
    max_failures: float = 0.1,
    ask_again: bool = False,
    **settings,
) -> Judge:
    """Returns the judge that `spec` names: `URL,model`, or a reward such as `model:DIR`.

    Args:
      question: summary or chat; this and the rest are for models behind a URL.
      both_orders: see `ModelJudge`, as for seed, max_failures and ask_again.
      settings: fields of `Endpoint`, such as cache and concurrency.

    Raises:
      ValueError: it is neither, or a setting is out of range.
    """
    if is_endpoint(spec):
        endpoint = parse_endpoint(spec, **settings)
        return ModelJudge(endpoint, question, both_orders, seed, max_failures, ask_again)
    try:
        rewards = parse_rewards(spec)
    except ValueError as error:
        raise ValueError(
            str(error).replace("--reward: ", "--judge: expected URL,model or a reward; ", 1)
        ) from None
    if len(rewards) != 1:
        raise ValueError(f"--judge: expected one reward, found {len(rewards)} in {spec!r}")
    return RewardJudge(rewards[0])


def is_endpoint(spec: str) -> bool:
    """Returns whether a judge is meant to be a model behind a URL."""
    return spec.startswith(("http://", "https://"))


def parse_endpoint(spec: str, **settings) -> Endpoint:
    """Returns the endpoint of `URL,model`.

    Raises:
      ValueError: it is written in another way, or a setting is out of range.
    """
    url, _, model = spec.rpartition(",")
    if not is_endpoint(url) or not model.strip():
        # Not shown: it may have a key in it.
        raise ValueError("--judge: expected URL,model, such as http://localhost:8000/v1,org/name")
    url = url.strip().rstrip("/").removesuffix("/chat/completions")
    return Endpoint(url, model.strip(), **settings)


def _no_decoder(tokens: Sequence[int]) -> str:
    raise ValueError(
        f"the reward needs the tokenizer: add it to the rows first, by {spelled('score')} RUN --reward=…"
    )


@dataclass(frozen=True)
class RewardJudge:
    """Prefers the completion with the larger reward; equal ones tie.

    Rewards that all rows have are taken as they are; else all are computed, none is stored.
    """

    reward: Reward
    columns: dict = field(default_factory=dict)
    """The prompts' other fields, by prompt_id."""
    decode: tuple[Decode, Decode] = (_no_decoder, _no_decoder)
    """Token ids of A and of B to text, for rewards that ask for it."""

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Returns the verdicts; none where the reward has no number for one of the two.

        Raises:
          ValueError: the reward fails.
        """
        if not pairs:
            return []
        name = self.reward.name
        known = all(name in row["rewards"] for pair in pairs for row in pair)
        a, b = (
            side if known else self._rewarded(side, decode)
            for side, decode in zip(zip(*pairs, strict=True), self.decode, strict=True)
        )
        return [_larger(x["rewards"][name], y["rewards"][name]) for x, y in zip(a, b, strict=True)]

    def _rewarded(self, rows: Sequence[dict], decode: Decode) -> list[dict]:
        # By identity: in a comparison with one strength of B, its rows come again and again.
        fresh = {id(row): {**row, "rewards": {}} for row in rows}
        judge(list(fresh.values()), [self.reward], self.columns, decode)
        return [fresh[id(row)] for row in rows]


def _larger(a: float | None, b: float | None) -> Verdict:
    return Verdict(None if a is None or b is None else (a > b) + (a == b) / 2)


@dataclass(frozen=True)
class ModelJudge:
    """Asks a language model which of two completions is better.

    Which one is shown first is drawn by a hash of seed, prompt and the two completions, so that it is the
    same in every run, and A against B is asked as B against A. Equal completions tie, unasked.
    """

    endpoint: Endpoint
    question: str = "chat"
    """A key of `COMPARISONS`."""
    both_orders: bool = False
    """Whether each pair is shown in both orders; if the verdicts differ, it is a tie."""
    seed: int = 0
    max_failures: float = 0.1
    """Share of answers that may be unreadable before judging ends, in [0, 1]."""
    ask_again: bool = False
    """Whether answers on disk that cannot be read are asked for again."""

    def __post_init__(self):
        check_choice("question", self.question, COMPARISONS)
        check_number("max_failures", self.max_failures, 0.0, 1.0)

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Returns the verdicts.

        Raises:
          ValueError: the endpoint fails, or too many answers are unreadable; finished ones are kept.
        """
        orders = {number: self._orders(*pair) for number, pair in enumerate(pairs) if not same_text(*pair)}
        places = [(number, swapped) for number, both in orders.items() for swapped in both]
        asked = [self._messages(*pairs[number], swapped) for number, swapped in places]
        read = ask(self.endpoint, asked, read_preference, self.max_failures, self.ask_again)
        firsts: dict[int, list[tuple[bool, float | None]]] = {number: [] for number in orders}
        for (number, swapped), first in zip(places, read, strict=True):
            firsts[number].append((swapped, first))
        return [_verdict(firsts[n]) if n in orders else Verdict(0.5) for n in range(len(pairs))]

    def _orders(self, a: dict, b: dict) -> list[bool]:
        """Returns, for each time that the pair is shown, whether B comes first."""
        sides = [[row["prompt"], row["completion"]] for row in (a, b)]
        ordered = sorted(sides, key=repr)
        drawn = hashlib.sha256(encode_json([self.seed, ordered])).digest()[0] & 1
        swapped = bool(drawn) != (sides != ordered)
        return [swapped, not swapped] if self.both_orders else [swapped]

    def _messages(self, a: dict, b: dict, swapped: bool) -> Messages:
        sides = [(row["prompt"], row["completion"]) for row in (a, b)]
        return compare_messages(self.question, *(sides[::-1] if swapped else sides))


def same_text(a: dict, b: dict) -> bool:
    """Returns whether two rows show a judge the same."""
    return (a["prompt"], a["completion"]) == (b["prompt"], b["completion"])


def _verdict(seen: Sequence[tuple[bool, float | None]]) -> Verdict:
    """Returns the verdict of (B came first, share of the first) for each order."""
    if any(first is None for _, first in seen):
        return Verdict(None)
    wins = {1 - first if swapped else first for swapped, first in seen}
    return Verdict(wins.pop() if len(wins) == 1 else 0.5, sum(first for _, first in seen) / len(seen))


def grade_reward(
    endpoint: Endpoint,
    question: str,
    max_failures: float = 0.1,
    ask_again: bool = False,
    name: str | None = None,
) -> Reward:
    """Returns what a language model says of each completion as a reward, called `name` or as the question.

    Args:
      question: hallucination (1 for yes) or mt-bench (1 to 10).
      max_failures: as of `ModelJudge`, also ask_again; completions without a readable answer get None.

    Raises:
      ValueError: an unknown question, or a share that is none.
    """
    check_choice("question", question, GRADES)
    check_number("max_failures", max_failures, 0.0, 1.0)

    def grade(completions: Completions) -> list[float | None]:
        both = zip(completions.prompts, completions.completions, strict=True)
        asked = [grade_messages(question, prompt, completion) for prompt, completion in both]
        return ask(endpoint, asked, GRADES[question].read, max_failures, ask_again)

    return Reward(name or question, grade)


def ask(
    endpoint: Endpoint,
    asked: Sequence[Messages],
    read: Callable[[str], float | None],
    max_failures: float,
    ask_again: bool = False,
) -> list[float | None]:
    """Returns the number that `read` finds in the answer to each request; None where it finds none.

    Raises:
      ValueError: the endpoint fails, or more than the share `max_failures` of the answers are unreadable,
        which is said as soon as it is certain.
    """
    numbers: list[float | None] = [None] * len(asked)
    usable = (lambda text: read(text) is not None) if ask_again else (lambda text: True)
    allowed = math.floor(max_failures * len(asked) + 1e-9)
    failed: list[Answer] = []
    with closing(endpoint.answers(asked, usable)) as found:
        for position, answer in found:
            numbers[position] = None if answer.problem else read(answer.text)
            if numbers[position] is None:
                failed.append(answer)
                if len(failed) > allowed:
                    raise ValueError(_too_many(endpoint, failed[0], allowed, len(asked), max_failures))
    return numbers


def _too_many(endpoint: Endpoint, first: Answer, allowed: int, asked: int, share: float) -> str:
    what = first.problem or f"{' '.join(first.text.split())[:80]!r}"
    return (
        f"judge {shown(endpoint.name)}: more than {allowed} of {asked} answers have no verdict "
        f"(--max-failures={share:g}), the first: {what}; {endpoint.where_kept}; "
        "--ask-again asks for unreadable ones again"
    )
