"""Requests of all kinds at once: whole, streamed, cancelled, malformed; and what each must be answered."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import requests

from dera_jax import generate

PROMPTS = ("Once upon a time", "Tom has a dog.", "The", "Lily went to the park. " * 4)
KINDS = {"whole": 36, "streamed": 20, "cancelled": 33, "malformed": 11}
"""And how many of a hundred."""
ANSWERED = ("whole", "streamed")


class Asked(NamedTuple):
    """A request, and its answer: a text, a status where it is malformed, None where the client went away."""

    kind: str
    body: dict
    found: str | int | None


def request_of(number: int) -> tuple[str, dict]:
    """Returns the kind and the body of a request, which its number decides."""
    mine = random.Random(number)
    body = {
        "prompt": mine.choice(PROMPTS), "max_tokens": mine.randint(1, 40), "seed": number,
        "dera": {"lambda": mine.choice((0, 0.3, 1, 1.7))},
    }  # fmt: skip
    return mine.choices(list(KINDS), list(KINDS.values()))[0], body


def ask(url: str, number: int) -> Asked:
    """Asks a server once."""
    kind, body = request_of(number)
    if kind == "malformed":
        return Asked(kind, body, _post(url, body | {"n": "three"}).status_code)
    if kind == "whole":
        return Asked(kind, body, _told(_post(url, body)).json()["choices"][0]["text"])
    with _post(url, body | {"stream": True}, stream=True) as answer:
        _told(answer)
        if kind == "cancelled":
            next(answer.iter_content(1), None)
            return Asked(kind, body, None)
        lines = answer.content.decode().split("\n")
    parts = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    if "data: [DONE]" not in lines:
        raise requests.exceptions.ConnectionError("the stream broke off")
    return Asked(kind, body, "".join(json.loads(part)["choices"][0]["text"] for part in parts))


def ask_until_answered(url: Callable[[], str], number: int, seconds: float = 300.0) -> tuple[Asked, int]:
    """Asks again while the server is gone; returns the answer, and how often it was asked in vain."""
    end, tries = time.monotonic() + seconds, 0
    while True:
        try:
            return ask(url(), number), tries
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
            if time.monotonic() > end:
                raise
            tries += 1
            time.sleep(0.2)


def check_answers(policies, asked: list[Asked], rows: int) -> Counter:
    """Fails unless each answer is the offline row of its request; returns how many there were of each kind."""
    kinds = Counter(each.kind for each in asked)
    assert all(each.found == 400 for each in asked if each.kind == "malformed")
    texts: dict[int, str] = {}
    for kind, body, found in asked:
        if kind not in ANSWERED:
            continue
        if (seed := body["seed"]) not in texts:
            given = {"seed": seed, "max_new_tokens": body["max_tokens"], "rows": rows}
            (expected,) = generate(policies, [body["prompt"]], body["dera"]["lambda"], **given)
            texts[seed] = expected.text
        assert found == texts[seed], body
    return kinds


def counted(metrics: str, name: str) -> float:
    """Returns a counter of /metrics, summed over its labels."""
    return sum(
        float(value) for value in re.findall(rf"^dera:{name}_total{{.*}} (\S+)$", metrics, re.MULTILINE)
    )


def check_counters(metrics: str, kinds: Counter) -> None:
    """Fails unless a server has counted what its clients have."""
    ended, cancelled = counted(metrics, "request_success"), counted(metrics, "request_cancelled")
    assert ended + cancelled == sum(kinds.values()) - kinds["malformed"], (ended, cancelled, kinds)
    # One that goes away may have been answered before it did.
    assert kinds["whole"] + kinds["streamed"] <= ended <= sum(kinds.values())
    assert counted(metrics, "request_refused") == kinds["malformed"]
    assert counted(metrics, "request_failure") == 0


def _post(url: str, body: dict, **given):
    return requests.post(f"{url}/v1/completions", json=body, timeout=120, **given)


def _told(answer):
    assert answer.status_code == 200, answer.text
    return answer
