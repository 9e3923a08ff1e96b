"""A server of a pair in this process, on a port of its own."""

import socket
import threading
import time
from contextlib import contextmanager

import requests
import uvicorn

from dera_jax.decoding.complete import MixtureDraw
from dera_jax.decoding.config import DecodeConfig
from dera_jax.rules.rule import linear_rule
from dera_jax.serving.app import make_app
from dera_jax.serving.config import ServeConfig
from dera_jax.serving.service import Service


def service_of(policies, rule=linear_rule, draw=None, **given):
    """Returns the service of a pair; `given` are settings of `ServeConfig`."""
    settings = {
        "name": "toy",
        "lambda_": (1.0,) * (len(policies) - 1),
        "lambda_range": (0.0, 2.0),
        "decode": DecodeConfig(max_new_tokens=24),
        "rows": 4,
    }
    return Service(policies, ServeConfig(**settings | given), rule, draw or MixtureDraw(), beta=0.1)


@contextmanager
def serving(policies, **given):
    """Runs a server for the block, which has its address and its service."""
    service = service_of(policies, **given)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(make_app(service), log_level="error", timeout_graceful_shutdown=20)
        )
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{port}", service
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive() and not service.engine.is_alive


def wait_until(true, seconds=60.0):
    """Fails unless `true()` comes to be true in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be true"
        time.sleep(0.01)


def post(url, path, **body):
    """Returns the status and the JSON of an answer."""
    answer = requests.post(url + path, json=body, timeout=120)
    return answer.status_code, answer.json()
