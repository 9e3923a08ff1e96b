"""What prefix caching saves: the time to the first token of a conversation's second turn."""

from collections.abc import Sequence

import jax
import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.decoding.request import Request, shape_of
from dera_jax.devices.usage import Usage
from dera_jax.performance.bench.sides import LAMBDA, without_eos
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, timed
from dera_jax.policies.policy import Policy

CONVERSATION, ANSWER, MESSAGE = 1_000, 64, 36
"""Tokens that the second turn is asked with, of which so many are the first answer, and so many are new."""
PREFIX_TARGET = 0.25


def bench_prefix(policies: Sequence[Policy], config: BenchConfig, progress: Progress = print) -> dict:
    """Returns the time to the first token of a second turn whose first is cached, and of one that is read anew.

    Of the first token by itself, a single step, and of the chunk of steps that callers are given it with.
    """
    policies, numbers = without_eos(policies), np.random.default_rng(0)
    vocab = min(len(policy.tokenizer) for policy in policies)
    store = PrefixCache()

    def words(count: int) -> list[int]:
        return numbers.integers(vocab, size=count).tolist()

    first = words(CONVERSATION - ANSWER - MESSAGE)
    said = first + _answer(policies, first, store, ANSWER)

    # Another message each time: of the last one nothing is known.
    runs = {
        "cached": timed(lambda: _first_token(policies, said + words(MESSAGE), store)),
        "anew": timed(lambda: _first_token(policies, said + words(MESSAGE), None)),
        "cached_chunk": timed(lambda: _answer(policies, said + words(MESSAGE), store)),
        "anew_chunk": timed(lambda: _answer(policies, said + words(MESSAGE), None)),
    }
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "conversation_tokens": CONVERSATION,
        "new_tokens": MESSAGE,
        "seconds": seconds,
        "cached_to_anew": ratio(seconds["cached"], seconds["anew"]),
        "chunk_cached_to_anew": ratio(seconds["cached_chunk"], seconds["anew_chunk"]),
        "target": PREFIX_TARGET,
    }


def _request(policies: Sequence[Policy], ids: Sequence[int]) -> Request:
    chat = Prompt(0, messages=({"role": "user", "content": "random words"},))
    return Request(EncodedPrompt(chat, (tuple(ids),) * len(policies)), 0, (LAMBDA,))


def _answer(
    policies: Sequence[Policy], ids: Sequence[int], store: PrefixCache | None, new_tokens: int = 1
) -> list[int]:
    """Returns the tokens that a conversation goes on with."""
    draw = MixtureDraw(prefixes=store)
    (done,) = draw(policies, [_request(policies, ids)], DecodeConfig(max_new_tokens=new_tokens), 1)
    return done.tokens


def _first_token(policies: Sequence[Policy], ids: Sequence[int], store: PrefixCache | None) -> None:
    """Draws a single token."""
    request = _request(policies, ids)
    batch = Batch(policies, shape_of(request), DecodeConfig(max_new_tokens=1), 1)
    if store:
        batch.pool.keep_prefixes(store, Usage())
    batch.submit([request])
    batch.fill()
    _, drawn = device_loop.decode_chunk(
        batch.configs, batch.params, batch.state, batch.sampling, batch.eos, rule=batch.rule, steps=1,
        mesh=batch.mesh,
    )  # fmt: skip
    jax.device_get(drawn)
