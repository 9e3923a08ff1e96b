"""A judge behind a URL that answers as two files say: `answer.json` what, `answer.how` how."""

import importlib
import os
import socket
import threading
import time
from pathlib import Path

KEY = "sk-SECRET-0123456789abcdef"
"""Must never be seen in any output or file."""
PORT = Path("port")


def choose_port() -> None:
    """Writes the port of all servers of this campaign, as the answers that are kept belong to a URL."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        PORT.write_text(str(opened.getsockname()[1]))


def main(words: list[str]) -> int:
    """Runs a command, words with its module before them, while a server answers at URL."""
    here, ending = Path.cwd(), threading.Event()
    os.environ["OPENAI_API_KEY"] = KEY
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", int(PORT.read_text())))
        listening.listen(16)
        listening.settimeout(0.1)
        url = f"http://127.0.0.1:{PORT.read_text()}/v1"
        server = threading.Thread(target=_serve, args=(listening, here, ending), daemon=True)
        server.start()
        try:
            module, *rest = words
            return importlib.import_module(module).main([word.replace("URL", url) for word in rest])
        finally:
            ending.set()
            server.join()


def _serve(listening: socket.socket, here: Path, ending: threading.Event) -> None:
    while not ending.is_set():
        try:
            taken, _ = listening.accept()
        except TimeoutError:
            continue
        threading.Thread(target=_answer, args=(taken, here, ending), daemon=True).start()


def _answer(taken: socket.socket, here: Path, ending: threading.Event) -> None:
    with taken:
        try:
            taken.settimeout(60)
            asked = _request(taken)
            body = (here / "answer.json").read_bytes() if (here / "answer.json").exists() else b"{}"
            how = (here / "answer.how").read_text() if (here / "answer.how").exists() else ""
            _send(taken, how, asked, body, ending)
        except OSError:
            return


def _request(taken: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += taken.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    while len(body) < length:
        body += taken.recv(65536)
    return head


def _reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


STATUSES = {
    "400": "400 Bad Request", "401": "401 Unauthorized", "403": "403 Forbidden", "404": "404 Not Found",
    "429": "429 Too Many", "500": "500 Error", "204": "204 No Content", "escape status": "403 \x1b[2J\x07No",
    "echo status": f"401 {KEY}",
}  # fmt: skip


def _send(taken: socket.socket, how: str, asked: bytes, body: bytes, ending: threading.Event) -> None:
    def drip(data: bytes) -> None:
        while not ending.is_set():
            taken.sendall(data)
            time.sleep(0.2)

    if how in STATUSES:
        taken.sendall(
            _reply(
                b'{"error": {"message": "\\u001b[31mRED \\u0007 ' + asked[-100:].hex().encode() + b'"}}',
                STATUSES[how],
            )
        )
    elif how == "429 forever":
        taken.sendall(_reply(b"{}", "429 Too Many", "Retry-After: 1e999"))
    elif how in ("redirect", "redirect loop"):
        where = "http://127.0.0.1:1/v1" if how == "redirect" else "/v1/chat/completions"
        taken.sendall(_reply(b"{}", "307 Temporary Redirect", f"Location: {where}"))
    elif how == "echo":
        taken.sendall(
            _reply(b'{"choices":[{"message":{"content":"[[A]] Rating: [[7]] ' + KEY.encode() + b'"}}]}')
        )
    elif how == "escape body":
        taken.sendall(_reply(b"\x1b]0;x\x07\x9b2J not JSON \xff\xfe\n\r\nerror: two"))
    elif how == "drip":
        taken.sendall(_reply(b"").replace(b"Content-Length: 0", b"Content-Length: 100000"))
        drip(b" ")
    elif how == "drip header":
        taken.sendall(b"HTTP/1.1 200 OK\r\n")
        drip(b"X-A: b\r\n")
    elif how in ("endless", "endless header"):
        taken.sendall(b"HTTP/1.1 200 OK\r\n" + (b"X: " if "header" in how else b"\r\n"))
        while not ending.is_set():
            taken.sendall(b" " * 2**20 if how == "endless" else b"a" * 2**20)
    elif how in ("no answer", "slow"):
        ending.wait(600 if how == "no answer" else 1.0)
        taken.sendall(_reply(body))
    elif how == "gzip bomb":
        import gzip

        taken.sendall(_reply(gzip.compress(bytes(2**29), 9), "200 OK", "Content-Encoding: gzip"))
    elif how == "chunked":
        taken.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + body)
    elif how == "bad length":
        taken.sendall(_reply(body).replace(b"Content-Length: ", b"Content-Length: 9"))
    elif how == "long header":
        taken.sendall(_reply(body, "200 OK", "X: " + "a" * 200_000))
    elif how == "two answers":
        taken.sendall(_reply(body) * 2)
    elif how == "http 0.9":
        taken.sendall(body)
    elif how == "garbage":
        taken.sendall(os.urandom(500))
    elif how != "close":
        taken.sendall(_reply(body))
