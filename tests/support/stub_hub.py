"""A hub on this machine: takes repositories and commits of small files, as huggingface_hub sends them."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What was sent, and what is answered."""

    def __init__(self):
        self.tokens: set[str | None] = set()
        self.created: list[dict] = []
        self.files: dict[str, dict[str, bytes]] = {}
        """By repository, by path."""
        self.status = 200
        self.url = ""

    def answer(self, path: str, body: bytes) -> dict:
        """Returns the answer to a request."""
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            made = self.created[-1]
            name = f"{made.get('organization')}/{made['name']}" if made.get("organization") else made["name"]
            return {"url": f"{self.url}/{name}", "name": name}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for f in files
                ]
            }
        if path.endswith("/commit/main"):
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    assert value["encoding"] == "base64"
                    self.files.setdefault(repo, {})[value["path"]] = base64.b64decode(value["content"])
            return {"commitUrl": f"{self.url}/{repo}/commit/abc", "commitOid": "abc", "pullRequestUrl": None}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        return {}


@contextmanager
def serve():
    """Gives a hub that answers until the end."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            length = self.headers.get("Content-Length")
            body = self.rfile.read(int(length)) if length else b"".join(iter(self._chunk, b""))
            hub.tokens.add(self.headers.get("Authorization"))
            told = hub.answer(self.path, body) if hub.status == 200 else {"error": f"no {hub.tokens}"}
            answer = json.dumps(told).encode()
            self.send_response(hub.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def _chunk(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            size = int(self.rfile.readline(), 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            return data

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
