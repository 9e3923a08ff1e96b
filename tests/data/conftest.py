"""Fixtures of the data's tests: policies that read chats or do not, and files in the current folder."""

import gzip
from dataclasses import replace

import pytest

from dera_jax.policies.tokenizers import load_tokenizer
from tests.support.training_records import TURNS


@pytest.fixture(scope="module")
def policy(toy):
    from dera_jax import load_policy

    return load_policy(str(toy))


@pytest.fixture(scope="module")
def chatting(policy):
    """Reads chats through `TURNS`; the tokenizer has the template for TRL, the policy for itself."""
    tokenizer = load_tokenizer(policy.folder)
    tokenizer.chat_template = TURNS
    return replace(policy, tokenizer=tokenizer)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file in the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return name

    return write
