"""A judge that is called once, with a key, whatever it answers."""

import pytest

from dera_jax.rewards.endpoint import Endpoint
from dera_jax.rewards.judges import ask

KEY = "sk-SECRET/0123+456=789"
QUESTION = [{"role": "user", "content": "Which?"}]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judged(url, cache, **settings):
    """Returns what the judge at a URL says, or the line that it fails with."""
    endpoint = Endpoint(url, "m", cache=cache, **{"retries": 0, "backoff": 0.0, **settings})
    try:
        return ask(endpoint, [QUESTION], {"[[A]]": 1.0}.get, 0.0)[0]
    except ValueError as error:
        return str(error)
