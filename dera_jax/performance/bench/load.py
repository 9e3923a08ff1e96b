"""Clients of a server: each streams its requests one after the other, and takes the time of what comes."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

import numpy as np

SILENCE = 600.0
"""Seconds that a client waits for the next bytes before it gives up."""
PERCENTILES = (50, 99)


@dataclass(frozen=True)
class Question:
    """What a client asks for."""

    prompt: tuple[int, ...]
    lambda_: float
    new_tokens: int

    def body(self) -> dict:
        """Returns it as `/v1/completions` takes it."""
        return {
            "prompt": list(self.prompt),
            "max_tokens": self.new_tokens,
            "temperature": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "dera": {"lambda": self.lambda_},
        }


@dataclass(frozen=True)
class Served:
    """How long an answer took, in seconds from its request."""

    first: float
    """To the first piece of text."""
    whole: float
    """To the end."""
    tokens: int

    @property
    def per_token(self) -> float:
        """Of each token after the first."""
        return (self.whole - self.first) / max(1, self.tokens - 1)


def run_clients(address: str, clients: Sequence[Sequence[Question]]) -> tuple[float, list[Served]]:
    """Returns the seconds until the last of several clients is done, and all their answers.

    Args:
      address: of the server, http://HOST:PORT.
      clients: what each of them asks.

    Raises:
      ValueError: an answer did not come, or was an error.
    """
    start = time.perf_counter()
    pool = ThreadPoolExecutor(len(clients), thread_name_prefix="client")
    try:
        answers = list(pool.map(partial(_ask_all, address), clients))
    finally:
        # Where one has failed the others are not waited for: they end with their server.
        pool.shutdown(wait=False, cancel_futures=True)
    return time.perf_counter() - start, [answer for each in answers for answer in each]


def _ask_all(address: str, questions: Sequence[Question]) -> list[Served]:
    connection = HTTPConnection(urlsplit(address).netloc, timeout=SILENCE)
    try:
        return [_ask(connection, question) for question in questions]
    except (OSError, HTTPException, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{address}: no whole answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _ask(connection: HTTPConnection, question: Question) -> Served:
    body, start = json.dumps(question.body()), time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"a server answered {response.status}: {response.read(500)!r}")
    first, tokens = None, 0
    for event in _events(response):
        if "error" in event:
            raise ValueError(f"a server answered {event['error']}")
        if first is None and any(choice["text"] for choice in event["choices"]):
            first = time.perf_counter() - start
        tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    whole = time.perf_counter() - start
    return Served(whole if first is None else first, whole, tokens)


def _events(response: HTTPResponse) -> Iterator[dict]:
    """Yields the server-sent events of a stream; it is read to its end, so that its connection serves on."""
    while line := response.readline():
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            response.read()
            return
        if line.startswith(b"data:"):
            yield json.loads(data)
    raise HTTPException("the stream broke off")


def latencies(answers: Sequence[Served]) -> dict[str, dict[str, float]]:
    """Returns percentiles of the seconds to the first text, per token after the first, and of whole answers."""
    found = {}
    for name in ("first", "per_token", "whole"):
        values = np.percentile([getattr(answer, name) for answer in answers], PERCENTILES)
        found[name] = {f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}
    return found
