"""Fixtures of the rewards' tests: an endpoint at the stub, and a user's module."""

import sys

import pytest

from dera_jax.rewards.endpoint import Endpoint


@pytest.fixture
def endpoint(stub, tmp_path):
    """Settings to an endpoint at the stub that does not wait before it tries again."""

    def made(**settings):
        return Endpoint(stub.url, "m", **{"backoff": 0.0, "cache": tmp_path / "cache", **settings})

    return made


USER_REWARDS = """
import numpy as np

def lengths(prompts, completions, **columns):
    return [float(len(c) + len(p)) for p, c in zip(prompts, completions)]

def named(completions, answer):
    return [1 if a in c else None for a, c in zip(answer, completions, strict=True)]

def everything(prompts, completions, **columns):
    assert sorted(columns) == ["answer", "completion_ids", "other"], columns
    return np.array([len(ids) for ids in columns["completion_ids"]], np.float32)

def generated(completions, **columns):
    yield from (True for c in completions)

def chatting(prompts, completions, **columns):
    assert "trainer_state" not in columns and isinstance(prompts[0], list), columns
    return [float(len(c[0]["content"])) if isinstance(c, list) else -len(c) for c in completions]

async def later(completions, **columns):
    import asyncio
    async def one(c): await asyncio.sleep(0.001); return len(c)
    return await asyncio.gather(*map(one, completions))

def of_training(completions, trainer_state, log_metric, log_extra):
    log_metric("mean", 1.0), log_extra("seen", [1] * len(completions))
    return [trainer_state.global_step] * len(completions)

def last_id(completions, completion_ids): return [ids[-1] for ids in completion_ids]

def short(completions, **columns): return [1.0]
def nothing(completions, **columns): pass
def text(completions, **columns): return "ab"
def words(completions, **columns): return ["1", "2"]
def nan(completions, **columns): return [0.0, np.nan]
def infinite(completions, **columns): return [float("-inf"), 0.0]
def fails(completions, **columns): raise KeyError("the\\nkey")
def demands(completions, missing): return [0.0, 0.0]
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "user_rewards", raising=False)
    (tmp_path / "user_rewards.py").write_text(USER_REWARDS)
    (tmp_path / "user_broken.py").write_text("def f(:")
