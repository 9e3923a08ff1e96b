"""An endpoint to judge by, on this machine: what it answers is a function of the request."""

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Reply = tuple[int, dict, bytes]


def says(text: object) -> Reply:
    """Returns a chat completion with `text`."""
    message = {"role": "assistant", "content": text}
    return 200, {}, json.dumps({"choices": [{"message": message}]}).encode()


def fails(status: int, message: str = "it is", headers: dict | None = None) -> Reply:
    """Returns an error as OpenAI writes them."""
    return status, headers or {}, json.dumps({"error": {"message": message}}).encode()


def asked(body: dict) -> str:
    """Returns what a request asks."""
    (message,) = body["messages"]
    return message["content"]


def shown(body: dict) -> tuple[str, str]:
    """Returns the two completions that a request for a comparison shows, the first one first."""
    return tuple(
        re.search(rf"<\w+_{name}>\n(.*?)\n</\w+_{name}>", asked(body), re.DOTALL)[1] for name in "AB"
    )


class Stub:
    """A server's record.

    Attributes:
      reply: request to what is answered; an exception ends the connection without an answer.
      bodies: of the requests so far.
      headers: likewise.
      most: requests that were under way at a time.
    """

    def __init__(self, url: str):
        self.url, self.bodies, self.headers, self.most = url, [], [], 0
        self.reply: Callable[[dict], Reply] = lambda body: says("[[A]]")
        self._now, self._lock = 0, threading.Lock()

    def answer(self, path: str, headers: dict, body: dict) -> Reply:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.reply(body) if path == "/v1/chat/completions" else fails(404, path)
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def serve():
    """Yields a stub that answers until the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, headers, data = stub.answer(self.path, dict(self.headers), body)
            except ConnectionAbortedError:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Says nothing of readers that left, as those who wait no longer do."""

    with Server(("127.0.0.1", 0), Handler) as server:
        stub = Stub(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()


class Wire:
    """What a server that writes its own bytes has written.

    Attributes:
      sent: bytes of all answers together.
      requests: how many came.
      left: how many readers left before their answer was at its end.
    """

    def __init__(self, url: str):
        self.url, self.sent, self.requests, self.left = url, 0, 0, 0


@contextmanager
def serve_bytes(pieces: Callable[[], Iterable[bytes]]):
    """Yields the record of a server that answers each request by pieces of bytes, as they are, and hangs up.

    Args:
      pieces: returns those of an answer; it ends by itself, however long a reader stays.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            head = iter(self.rfile.readline, b"\r\n")
            length = next(int(line.split()[1]) for line in head if line.lower().startswith(b"content-length"))
            list(head)
            self.rfile.read(length)
            wire.requests += 1
            try:
                for piece in pieces():
                    self.connection.sendall(piece)
                    wire.sent += len(piece)
            except OSError:
                wire.left += 1

    class Server(socketserver.ThreadingTCPServer):
        def handle_error(self, *_):
            """Says nothing."""

    with Server(("127.0.0.1", 0), Handler) as server:
        wire = Wire(f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield wire
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve() as server:
        yield server
