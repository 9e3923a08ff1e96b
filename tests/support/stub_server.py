"""A server with the API that the page speaks, on this machine: it serves the page and streams what tests give it."""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.processes import ROOT

PAGE = ROOT / "dera_jax/serving/page/index.html"
DERA = {
    "lambda": [1.0], "lambda_range": [0, 2], "reference": "small-sft", "aligned": ["small-dpo"], "beta": 0.1,
    "chat": True, "max_tokens": 512, "context": 2048,
}  # fmt: skip


def token(text: str, kl: float = 0.25, ratio: float = 0.5) -> dict:
    """Returns a token of an answer with its numbers."""
    return {"token": text, "kl": kl, "log_ratio": ratio, "logprob": -1.5}


def policy(page: str) -> str:
    """Returns a strict Content-Security-Policy that lets the page's own script and style run, and nothing else."""
    rules = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rules += f"; {tag}-src 'sha256-{digest}'"
    return rules


class Stub:
    """What is answered, and a record of what was asked.

    Attributes:
      dera: the model's properties.
      pieces: events of an answer, as (text, tokens) or as they are; at `None` it ends, unfinished.
      pause: seconds before each event.
      refusal: status, headers and message of the answer to requests for text, if it is none.
      key: what `Authorization` must bear, if anything.
      paths, bodies: of the requests for text so far.
      left: set once a reader leaves before the answer is at its end.
    """

    def __init__(self, url: str):
        self.url, self.dera, self.pause, self.refusal, self.key = url, DERA, 0.0, (), None
        self.pieces = [(each, [token(each)]) for each in ("Hello", " there", ".")]
        self.paths, self.bodies, self.left = [], [], threading.Event()

    def events(self, body: dict):
        """Yields the events of the answer to a request."""
        for piece in self.pieces:
            if piece is None:
                return
            yield piece if isinstance(piece, dict) else event(body, piece[0], tokens=piece[1])
        yield event(body, "", "stop", kl=12.3, log_z=None, log_ratio=3.4, seed=body["seed"], tokens=[])
        yield {"choices": [], "usage": {"completion_tokens": len(self.pieces)}}


def event(body: dict, text: str, reason: str | None = None, **dera) -> dict:
    said = {"delta": {"content": text}} if "messages" in body else {"text": text}
    return {"choices": [{"index": 0, **said, "finish_reason": reason, "dera": dera}]}


@contextmanager
def serve():
    """Yields a stub that answers until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/v1/models":
                page = PAGE.read_text(encoding="utf-8")
                self.send(page, "text/html; charset=utf-8", {"Content-Security-Policy": policy(page)})
            elif not self.refused():
                self.send(
                    json.dumps({"data": [{"id": f"small{at}", "dera": stub.dera} for at in ("", "@0", "@1")]})
                )

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.paths.append(self.path)
            stub.bodies.append(body)
            if self.refused(*stub.refusal):
                return
            try:
                self.send("", "text/event-stream")
                for event in stub.events(body):
                    time.sleep(stub.pause)
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                stub.left.set()

        def refused(self, status=200, headers=None, message=""):
            if stub.key and self.headers["Authorization"] != f"Bearer {stub.key}":
                status, message = 401, "no key"
            if status != 200:
                self.send(json.dumps({"error": {"message": message}}), headers=headers, status=status)
            return status != 200

        def send(self, text, kind="application/json", headers=None, status=200):
            self.send_response(status)
            for name, value in {"Content-Type": kind, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stub = Stub(f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield stub
        finally:
            server.shutdown()
