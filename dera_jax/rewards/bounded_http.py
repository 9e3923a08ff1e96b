"""Requests that end: in time and with an answer of a size, whatever the server does.

What is called a timeout elsewhere is of each read: a server that sends a byte now and then is waited for
without end. Here it is of the whole, from the connection to the last byte.
"""

import io
import time
from dataclasses import dataclass
from functools import cache
from http.client import BadStatusLine, HTTPException, HTTPResponse, RemoteDisconnected

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Timeout

LARGEST = 4 * 2**20
"""Bytes of an answer, at most."""


class Unanswered(Exception):
    """There was no answer, and may be one later; says why."""


@dataclass(frozen=True)
class Response:
    """An answer."""

    status: int
    reason: str
    """What the server calls the status."""
    retry_after: str | None
    """The header of that name."""
    body: bytes


class Client:
    """Connections that are used again, shared by threads."""

    def __init__(self, connections: int):
        self._session = requests.Session()
        adapter = _Adapter(pool_connections=1, pool_maxsize=connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def close(self) -> None:
        """Closes them."""
        self._session.close()

    def post(self, url: str, body: dict, key: str, timeout: float) -> Response:
        """Returns what is answered to JSON. Redirects are not followed: they would take the key along.

        Args:
          key: sent along, if it is not empty.
          timeout: seconds until the answer must have come, whole.

        Raises:
          Unanswered: there is none.
          ValueError: it is too large, or the request cannot be made.
        """

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            """Adds the key. Given as `auth`, so that requests does not look for another one in ~/.netrc."""
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        # Uncompressed, for a few bytes may stand for many.
        asked = requests.Request("POST", url, {"Accept-Encoding": "identity"}, json=body, auth=authorize)
        try:
            # Not by the session, which would read the whole body of a redirect.
            request = self._session.prepare_request(asked)
            settings = self._session.merge_environment_settings(request.url, {}, True, None, None)
            sent = self._session.get_adapter(request.url).send(
                request, **settings, timeout=Timeout(total=timeout)
            )
            return _read(sent)
        except (requests.Timeout, ReadTimeoutError):
            raise Unanswered(f"no answer within {timeout:g} s (--timeout)") from None
        except (requests.ConnectionError, HTTPError) as error:
            raise Unanswered(f"cannot be reached: {_reason(error)}") from None
        except requests.RequestException as error:
            raise ValueError(str(error)) from None


def _read(sent: requests.Response) -> Response:
    """Returns an answer whose body has come.

    Raises:
      ValueError: it is too large.
    """
    body = b""
    with sent:
        # Until nothing comes, for only then is it said that the server hung up before the end.
        while part := sent.raw.read(LARGEST + 1 - len(body), decode_content=False):
            body += part
    if len(body) > LARGEST:
        raise ValueError(f"its answer is larger than {LARGEST >> 20} MiB")
    return Response(sent.status_code, sent.reason or "", sent.headers.get("Retry-After"), body)


def _reason(error: Exception) -> str:
    """Returns the innermost reason of a failed connection."""
    while inner := [
        each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, Exception)
    ]:
        error = inner[-1]
    text = " ".join(str(error).split())
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return f"what came is no HTTP: {text}"
    return text.rpartition(": ")[2].strip("\"'") or type(error).__name__


class _Adapter(HTTPAdapter):
    """Makes connections whose answers end in time."""

    def get_connection_with_tls_context(self, *args, **kwargs):
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _timed(pool.ConnectionCls)
        return pool


@cache
def _timed(kind: type) -> type:
    """Returns a kind of connection with answers that end in time; direct, by TLS, by any proxy."""
    if issubclass(kind.response_class, _TimedResponse):
        return kind
    return type(kind.__name__, (kind,), {"response_class": _TimedResponse})


class _TimedResponse(HTTPResponse):
    """An answer whose reads share the time that its socket was given."""

    def __init__(self, sock, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(sock, self.fp.detach()))

    def begin(self) -> None:
        """Reads the head. Broken lines in it are no answer; urllib3 would print them."""
        super().begin()
        if self.msg.defects:
            raise HTTPException("broken headers")


class _TimedReader(io.RawIOBase):
    """Reads a socket's bytes until its time is over."""

    def __init__(self, sock, raw: io.RawIOBase):
        self._socket, self._raw = sock, raw
        self._end = time.monotonic() + sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
