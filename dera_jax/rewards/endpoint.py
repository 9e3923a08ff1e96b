"""Language models behind OpenAI-compatible endpoints: many questions at once, each paid for once.

Answers are kept on disk as they come, under a hash of (url, model, messages, sampling); what is there is
not asked again. The key is read from the environment, goes into the request's header and nowhere else.
"""

import ipaddress
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from dera_jax.common.checks import check_count, check_number
from dera_jax.common.files import make_folder
from dera_jax.common.redaction import redactor
from dera_jax.common.shown import shown
from dera_jax.rewards.bounded_http import Client, Response, Unanswered
from dera_jax.rewards.chat_completions import content, message, retry_after
from dera_jax.rewards.judge_cache import Cache, default_cache

KEY_ENV = "OPENAI_API_KEY"
"""Where the key is looked for, if no other place is named; without one the requests carry none, as local servers
like it."""
LONGEST_TIME = 1e6
"""Seconds, about twelve days: the clocks of sockets and locks do not count much further."""
MOST_AT_A_TIME = 1024
"""Requests."""
LONGEST_WAIT = 120.0
"""Seconds. An endpoint that asks for more is better asked again later."""
NOT_THIS_ONE = (400, 413, 422)
"""Statuses that are about one request: too long, say, or filtered."""
PASSING = (408, 409, 425, 429)
"""Statuses below 500 that may pass."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    text: str
    """What the model said; "" if nothing."""
    problem: str | None = None
    """Why the endpoint refused this request, where it did."""


@dataclass(frozen=True)
class Endpoint:
    """A model that judges, and how it is asked."""

    url: str
    """Of the interface, such as http://host/v1; /chat/completions is added."""
    model: str
    """As the endpoint calls it."""
    temperature: float | None = 0.0
    """≥ 0; None leaves it to the endpoint."""
    max_new_tokens: int | None = 1024
    """Longest answer; None leaves it to the endpoint."""
    concurrency: int = 8
    """Requests under way at a time; ≥ 1."""
    timeout: float = 60.0
    """Seconds that a request may take, from the connection to the end of the answer; > 0."""
    retries: int = 5
    """How often a request is sent again after failures that may pass; ≥ 0."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled for each further one; ≥ 0. Longer if Retry-After says so."""
    cache: Path = field(default_factory=default_cache)
    """Folder of the answers."""
    key_env: str | None = None
    """Environment variable with the key. None is `KEY_ENV`, whose key is for no unencrypted line to another machine."""

    def __post_init__(self):
        check_count("concurrency", self.concurrency)
        check_number("concurrency", self.concurrency, 1, MOST_AT_A_TIME)
        check_count("retries", self.retries, least=0)
        check_number("timeout", self.timeout, 1e-3, LONGEST_TIME)
        check_number("backoff", self.backoff, 0.0, LONGEST_TIME)
        if self.temperature is not None:
            check_number("temperature", self.temperature, 0.0, float("inf"))
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        self._check_url()
        self._check_key()
        make_folder(self.cache)

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            fine = False
        # What stands before an @ or after a ? may be a secret, and commands are recorded.
        if not fine or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("judge: expected a URL such as http://host/v1, without user, password and query")

    def _check_key(self) -> None:
        named = self.key_env is not None
        if named and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ValueError(
                "--judge-key-env: expected the name of an environment variable; what was given is not shown, "
                "for it may be a key"
            )
        if named and not os.environ.get(self.key_env):
            # Some keys look like names of variables, but not like those that people choose.
            name = f" {self.key_env}" if re.fullmatch("[A-Z][A-Z0-9_]{0,39}", self.key_env) else ""
            raise ValueError(
                f"the environment variable{name}, for the judge's key (--judge-key-env), is not set"
            )
        if not all(" " < letter <= "~" for letter in self.key):
            # Not shown, for it may be most of a key.
            raise ValueError(f"{self.variable}: expected a key of visible ASCII characters")
        if self.key and not named and not _is_private(self.url):
            raise ValueError(
                f"judge {shown(self.url, 200)}: not encrypted, and {KEY_ENV} is set: "
                f"--judge-key-env={KEY_ENV} sends the key there all the same; unset {KEY_ENV} to send none"
            )

    @property
    def variable(self) -> str:
        """The name of the environment variable with the key."""
        return self.key_env or KEY_ENV

    @property
    def key(self) -> str:
        """The key, or "" if there is none."""
        return os.environ.get(self.variable, "").strip()

    @cached_property
    def redacted(self) -> Callable[[str], str]:
        """What takes the key out of a text from outside."""
        return redactor(self.key)

    @property
    def name(self) -> str:
        """`URL,model`, as it is written in commands."""
        return f"{self.url},{self.model}"

    @property
    def where_kept(self) -> str:
        """What is said when judging ends early."""
        return f"finished judgements are kept in {self.cache}"

    def body(self, messages: Sequence[dict]) -> dict:
        """Returns the request for `messages`."""
        sampling = {"temperature": self.temperature, "max_tokens": self.max_new_tokens}
        chosen = {name: value for name, value in sampling.items() if value is not None}
        return {"model": self.model, "messages": list(messages), **chosen}

    def answers(
        self, asked: Sequence[list[dict]], usable: Callable[[str], bool] = lambda text: True
    ) -> Iterator[tuple[int, Answer]]:
        """Yields (number in `asked`, its answer) as they come, those on disk first; equal ones are asked once.

        When this ends early, by an error or because its reader has had enough, requests under way are
        waited for and their answers kept.

        Args:
          asked: messages of each request.
          usable: says of an answer on disk whether it will do; the others are asked again.

        Raises:
          ValueError: the endpoint cannot be reached, refuses all, or goes on failing; a broken cache.
        """
        numbers: dict[str, list[int]] = {}
        for number, messages in enumerate(asked):
            numbers.setdefault(self._name(messages), []).append(number)
        first = {name: self.body(asked[all_[0]]) for name, all_ in numbers.items()}
        there = {name: found for name, body in first.items() if (found := self._kept(body)) is not None}
        there = {name: found for name, found in there.items() if usable(found.text)}
        for name, answer in there.items():
            yield from ((number, answer) for number in numbers[name])
        wanted = {name: body for name, body in first.items() if name not in there}
        if not wanted:
            return
        with (
            tqdm(total=len(numbers), initial=len(there), unit="judgement", dynamic_ncols=True) as bar,
            closing(self._ask_all(wanted, bar.set_postfix_str)) as found,
        ):
            for name, answer in found:
                bar.update()
                yield from ((number, answer) for number in numbers[name])

    def _ask_all(
        self, wanted: dict[str, dict], notice: Callable[[str], None]
    ) -> Iterator[tuple[str, Answer]]:
        wait = True
        with _Line(self, notice) as line:
            pool = ThreadPoolExecutor(self.concurrency)
            try:
                names: dict[Future, str] = {
                    pool.submit(self._ask, line, body): name for name, body in wanted.items()
                }
                for future in as_completed(names):
                    if line.failure:
                        raise line.failure
                    yield names[future], future.result()
            except KeyboardInterrupt:
                wait = False
                raise KeyboardInterrupt(f"{self.where_kept}; the same command goes on from there") from None
            finally:
                line.stop.set()
                pool.shutdown(wait=wait, cancel_futures=True)

    def _ask(self, line: "_Line", body: dict) -> Answer:
        answer = line.ask(body)
        if answer.problem is None:
            self._answers.write(body, answer.text)
        return answer

    @property
    def _answers(self) -> Cache:
        return Cache(self.cache, self.url)

    def _name(self, messages: Sequence[dict]) -> str:
        return self._answers.name(self.body(messages))

    def _kept(self, body: dict) -> Answer | None:
        text = self._answers.read(body)
        return None if text is None else Answer(self.redacted(text))


def _is_private(url: str) -> bool:
    """Returns whether nobody between here and the endpoint can read what is sent."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or host.endswith(".localhost")
    return parts.scheme == "https" or loopback


class _Line:
    """The connections to an endpoint, shared by threads.

    Attributes:
      stop: set when nobody waits for answers any more: no request is sent from then on.
      failure: of the first request that failed for good, which stops all.
    """

    def __init__(self, endpoint: Endpoint, notice: Callable[[str], None]):
        self._endpoint = endpoint
        self._notice = notice
        self._url = endpoint.url.rstrip("/") + "/chat/completions"
        self._client = Client(endpoint.concurrency)
        self._resume = 0.0  # on the monotonic clock; a rate limit is for all threads
        self._answered = self._retried = 0
        self.stop = threading.Event()
        self.failure: ValueError | None = None

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_) -> None:
        self._client.close()

    def ask(self, body: dict) -> Answer:
        """Returns the answer to one request, sent again after failures that may pass.

        Raises:
          ValueError: it went on failing, or failed in a way that will not pass.
        """
        tries, answered = 0, 0
        while True:
            self._pause()
            problem, response = self._send(body)
            status = response.status if response else None
            if status == 200:
                if (said := content(response)) is not None:
                    self._answered += 1
                    return Answer(self._endpoint.redacted(said))
                problem = f"answered with no chat completion: {self._line(message(response))}"
            elif response:
                problem = f"{status} {self._line(response.reason)}: {self._line(message(response))}"
                if status in NOT_THIS_ONE:
                    return Answer("", problem)
                if status not in PASSING and status < 500:
                    raise self._error(problem + self._hint(status))
                if status == 429 and self._answered > answered:
                    # Others got through since: the limit is shared, and this one's turn will come.
                    tries, answered = 0, self._answered
            tries += 1
            if tries > self._endpoint.retries:
                raise self._error(f"{problem} ({tries} {'tries' if tries > 1 else 'try'})")
            self._wait(tries, response, problem)

    def _send(self, body: dict) -> tuple[str, Response | None]:
        """Returns the response, or why there is none and there may be one later."""
        try:
            return "", self._client.post(self._url, body, self._endpoint.key, self._endpoint.timeout)
        except Unanswered as failure:
            return self._line(str(failure)), None
        except ValueError as error:
            raise self._error(self._line(str(error))) from None

    def _pause(self) -> None:
        """Waits until requests may be sent."""
        while (left := self._resume - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise CancelledError

    def _wait(self, tries: int, response: Response | None, problem: str) -> None:
        """Waits before a request is sent again: ever longer, and as long as the endpoint asks for."""
        self._retried += 1
        self._notice(f"{self._retried} retried, last: {problem[:60]}")
        asked = retry_after(response) or 0.0
        if asked > LONGEST_WAIT:
            raise self._error(f"{problem}; it asks to be left alone for {asked:.0f} s")
        self._resume = max(self._resume, time.monotonic() + asked)
        self.stop.wait(
            min(self._endpoint.backoff * 2 ** min(tries - 1, 30), LONGEST_WAIT) * random.uniform(0.75, 1.25)
        )

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            where = self._endpoint.variable
            return f" (the key in {where}{'' if self._endpoint.key else ', which is not set'})"
        return (
            " (expected the URL's base, such as http://host/v1, and a model it has)" if status == 404 else ""
        )

    def _line(self, text: str) -> str:
        """Returns a line's worth of a text from outside, without the key."""
        text = shown(" ".join(self._endpoint.redacted(text).split()))
        return (text if len(text) <= 200 else text[:199] + "…") or "(empty)"

    def _error(self, problem: str) -> ValueError:
        """Returns a failure for good, and stops the other requests."""
        error = ValueError(f"judge {shown(self._endpoint.name)}: {problem}; {self._endpoint.where_kept}")
        self.failure = self.failure or error
        self.stop.set()
        return error
