"""One pair and one server for all tests that only ask."""

import pytest

from dera_jax import load_policies
from tests.support.conversations import chatting
from tests.support.servers import serving


@pytest.fixture(scope="session")
def pair():
    return load_policies()


@pytest.fixture(scope="session")
def chats(pair):
    """The toy pair with a chat template."""
    return chatting(pair)


@pytest.fixture(scope="session")
def running(pair):
    with serving(pair) as found:
        yield found


@pytest.fixture(scope="session")
def url(running):
    return running[0]


@pytest.fixture(scope="session")
def chat_url(chats):
    with serving(chats, name="chat") as (url, _):
        yield url
