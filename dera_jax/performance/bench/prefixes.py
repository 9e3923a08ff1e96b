"""What prefix caching saves: the time to the first token of a conversation's second turn."""

from collections.abc import Sequence

import numpy as np

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.complete import Draw, MixtureDraw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.decoding.request import Request
from dera_jax.performance.bench.sides import LAMBDA, without_eos
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, timed
from dera_jax.policies.policy import Policy

CONVERSATION, ANSWER, MESSAGE = 1_000, 64, 36
"""Tokens that the second turn is asked with, of which so many are the first answer, and so many are new."""
PREFIX_TARGET = 0.25


def bench_prefix(policies: Sequence[Policy], config: BenchConfig, progress: Progress = print) -> dict:
    """Returns the time to the first token of a second turn whose first is cached, and of one that is read anew.

    A first token comes with the chunk of steps that it is drawn in.
    """
    policies, numbers = without_eos(policies), np.random.default_rng(0)
    vocab = min(len(policy.tokenizer) for policy in policies)
    chat = Prompt(0, messages=({"role": "user", "content": "random words"},))

    def words(count: int) -> list[int]:
        return numbers.integers(vocab, size=count).tolist()

    def answer(draw: Draw, ids: Sequence[int], new_tokens: int) -> list[int]:
        request = Request(EncodedPrompt(chat, (tuple(ids),) * len(policies)), 0, (LAMBDA,))
        (done,) = draw(policies, [request], DecodeConfig(max_new_tokens=new_tokens), 1)
        return done.tokens

    cached = MixtureDraw(prefixes=PrefixCache())
    first = words(CONVERSATION - ANSWER - MESSAGE)
    said = first + answer(cached, first, ANSWER)
    # Another message each time: of the last one nothing is known.
    runs = {
        "cached": timed(lambda: answer(cached, said + words(MESSAGE), 1)),
        "anew": timed(lambda: answer(complete, said + words(MESSAGE), 1)),
    }
    seconds = interleave(runs, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "conversation_tokens": CONVERSATION,
        "new_tokens": MESSAGE,
        "seconds": seconds,
        "cached_to_anew": ratio(seconds["cached"], seconds["anew"]),
        "target": PREFIX_TARGET,
    }
