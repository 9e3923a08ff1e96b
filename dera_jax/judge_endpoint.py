"""Language models behind OpenAI-compatible endpoints: many questions at once, each paid for once.

Answers are kept on disk as they come, under a hash of (url, model, messages, sampling); what is there is
not asked again. The key is read from the environment, goes into the request's header and nowhere else.
"""

import hashlib
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from dera_jax.configs import check_count, check_number
from dera_jax.files import encode_json, make_folder, read_json, write_json
from dera_jax.places import cache_folder

KEY_ENV = "OPENAI_API_KEY"
"""Where the key is looked for; without one the requests carry none, as local servers like it."""
LONGEST_WAIT = 120.0
"""Seconds. An endpoint that asks for more is better asked again later."""
NOT_THIS_ONE = (400, 413, 422)
"""Statuses that are about one request: too long, say, or filtered."""


def default_cache() -> Path:
    """Returns the folder where judges' answers are kept: `dera_jax/judge` in XDG_CACHE_HOME or ~/.cache."""
    return cache_folder() / "judge"


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
    """Seconds that a request may take; > 0."""
    retries: int = 5
    """How often a request is sent again after failures that may pass; ≥ 0."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled for each further one; ≥ 0. Retry-After wins."""
    cache: Path = field(default_factory=default_cache)
    """Folder of the answers."""
    key_env: str = KEY_ENV
    """Environment variable with the key."""

    def __post_init__(self):
        check_count("concurrency", self.concurrency)
        check_count("retries", self.retries, least=0)
        check_number("timeout", self.timeout, 1e-3, math.inf)
        check_number("backoff", self.backoff, 0.0, math.inf)
        if self.temperature is not None:
            check_number("temperature", self.temperature, 0.0, math.inf)
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        self._check_url()
        if self.key_env != KEY_ENV and not os.environ.get(self.key_env):
            raise ValueError(f"the environment variable {self.key_env}, for the judge's key, is not set")
        if not all(" " < letter <= "~" for letter in self.key):
            # Not shown, for it may be most of a key.
            raise ValueError(f"{self.key_env}: expected a key of visible ASCII characters")
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

    @property
    def key(self) -> str:
        """The key, or "" if there is none."""
        return os.environ.get(self.key_env, "").strip()

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
            numbers.setdefault(self._hash(messages), []).append(number)
        there = {name: found for name in numbers if (found := self._kept(name)) and usable(found.text)}
        for name, answer in there.items():
            yield from ((number, answer) for number in numbers[name])
        wanted = {name: asked[all_[0]] for name, all_ in numbers.items() if name not in there}
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
        self, wanted: dict[str, list[dict]], notice: Callable[[str], None]
    ) -> Iterator[tuple[str, Answer]]:
        wait = True
        with _Line(self, notice) as line:
            pool = ThreadPoolExecutor(self.concurrency)
            try:
                names: dict[Future, str] = {
                    pool.submit(self._ask, line, name, messages): name for name, messages in wanted.items()
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

    def _ask(self, line: "_Line", name: str, messages: list[dict]) -> Answer:
        body = self.body(messages)
        answer = line.ask(body)
        if answer.problem is None:
            made = {"url": self.url, **body, "answer": answer.text}
            make_folder(self._path(name).parent)
            write_json(self._path(name), made)
        return answer

    def _hash(self, messages: Sequence[dict]) -> str:
        return hashlib.sha256(encode_json([self.url, self.body(messages)])).hexdigest()

    def _path(self, name: str) -> Path:
        return self.cache / name[:2] / f"{name}.json"

    def _kept(self, name: str) -> Answer | None:
        path = self._path(name)
        if not path.exists():
            return None
        made = read_json(path)
        if not isinstance(made, dict) or not isinstance(made.get("answer"), str):
            raise ValueError(f"{path}: expected a judge's answer; remove the file to ask again")
        return Answer(made["answer"])


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
        self._key = endpoint.key
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=endpoint.concurrency)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._resume = 0.0  # on the monotonic clock; a rate limit is for all threads
        self._answered = self._retried = 0
        self.stop = threading.Event()
        self.failure: ValueError | None = None

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_) -> None:
        self._session.close()

    def ask(self, body: dict) -> Answer:
        """Returns the answer to one request, sent again after failures that may pass.

        Raises:
          ValueError: it went on failing, or failed in a way that will not pass.
        """
        tries, answered = 0, 0
        while True:
            self._pause()
            problem, response = self._send(body)
            if response is not None and response.status_code == 200:
                if (answer := _content(response)) is not None:
                    self._answered += 1
                    return answer
                problem = f"answered with no chat completion: {self._clean(response.text)}"
            elif response is not None:
                problem = f"{response.status_code} {response.reason}: {self._message(response)}"
                if response.status_code in NOT_THIS_ONE:
                    return Answer("", problem)
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise self._error(problem + self._hint(response.status_code))
                if response.status_code == 429 and self._answered > answered:
                    # Others got through since: the limit is shared, and this one's turn will come.
                    tries, answered = 0, self._answered
            tries += 1
            if tries > self._endpoint.retries:
                raise self._error(f"{problem} ({tries} {'tries' if tries > 1 else 'try'})")
            self._wait(tries, response, problem)

    def _send(self, body: dict) -> tuple[str, requests.Response | None]:
        """Returns the response, or why there is none and there may be one later."""
        try:
            return "", self._session.post(
                self._url,
                json=body,
                timeout=self._endpoint.timeout,
                auth=self._authorize,
                allow_redirects=False,  # they would take the key along
            )
        except requests.Timeout:
            return f"no answer within {self._endpoint.timeout:g} s (--timeout)", None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            return f"cannot be reached: {_reason(error)}", None
        except requests.RequestException as error:
            raise self._error(self._clean(str(error))) from None

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the key. Given as `auth`, so that requests does not look for another one in ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _pause(self) -> None:
        """Waits until requests may be sent."""
        while (left := self._resume - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise CancelledError

    def _wait(self, tries: int, response: requests.Response | None, problem: str) -> None:
        """Waits before a request is sent again: as long as the endpoint asks for, else ever longer."""
        self._retried += 1
        self._notice(f"{self._retried} retried, last: {problem[:60]}")
        asked = _retry_after(response)
        if asked is None:
            self.stop.wait(self._endpoint.backoff * 2 ** (tries - 1) * random.uniform(0.75, 1.25))
        elif asked > LONGEST_WAIT:
            raise self._error(f"{problem}; it asks to be left alone for {asked:.0f} s")
        else:
            self._resume = max(self._resume, time.monotonic() + asked)

    def _message(self, response: requests.Response) -> str:
        """Returns what the endpoint says is wrong."""
        try:
            said = response.json()["error"]
            return self._clean(str(said["message"] if isinstance(said, dict) else said))
        except (ValueError, KeyError, TypeError):
            return self._clean(response.text)

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return f" (the key in {self._endpoint.key_env}{'' if self._key else ', which is not set'})"
        return (
            " (expected the URL's base, such as http://host/v1, and a model it has)" if status == 404 else ""
        )

    def _clean(self, text: str) -> str:
        """Returns a line's worth of text, without the key."""
        text = " ".join((text.replace(self._key, "…") if self._key else text).split())
        return (text if len(text) <= 200 else text[:199] + "…") or "(empty)"

    def _error(self, problem: str) -> ValueError:
        """Returns a failure for good, and stops the other requests."""
        error = ValueError(f"judge {self._endpoint.name}: {problem}; {self._endpoint.where_kept}")
        self.failure = self.failure or error
        self.stop.set()
        return error


def _content(response: requests.Response) -> Answer | None:
    """Returns the answer in a response; None if it is no chat completion."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return Answer(content if isinstance(content, str) else "")


def _retry_after(response: requests.Response | None) -> float | None:
    """Returns the seconds of a response's Retry-After, a number or a date; None without."""
    header = None if response is None else response.headers.get("Retry-After")
    try:
        return None if header is None else float(Retry().parse_retry_after(header))
    except InvalidHeader:
        return None


def _reason(error: requests.RequestException) -> str:
    """Returns the innermost reason of a failed connection."""
    inner = error.args[0] if error.args else error
    text = " ".join(str(getattr(inner, "reason", inner)).split())
    return text.rpartition(": ")[2].strip("\"'") or type(error).__name__
