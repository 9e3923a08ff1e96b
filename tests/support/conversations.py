"""Conversations of a pair, with prompts that are read anew and with prompts that go on from caches."""

from dataclasses import replace

import numpy as np

from dera_jax.data.encoding import EncodedPrompt, encode_prompts
from dera_jax.data.prompts import Prompt, as_prompts
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.conversation import Conversation, converse
from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.decoding.request import Request
from dera_jax.devices.usage import Usage

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPENING = (
    "Once upon a time, there was a little girl named Lily. She went to the park with her mom and her dog."
)
TURNS = [f"{OPENING} {OPENING}", "And then? What did the dog say to her?", "Why?"]
CONFIG = DecodeConfig(max_new_tokens=24, seed=1)
WORDS = Prompt(0)
FIGURES = ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference", "log_normalizers")


def chatting(policies, template=CHATML):
    return tuple(replace(policy, template=template, eos_ids=()) for policy in policies)


def talk(policies, prompts, store=None, config=CONFIG, strengths=((0.5,),), rows=1, **how):
    """Returns all answers of conversations at all strengths, and what was used."""
    prompts = as_prompts(prompts)
    encoded = encode_prompts(policies, prompts, config.max_new_tokens)
    conversations = [
        Conversation(prompt, first, 0, (strength,) * prompt.num_turns)
        for prompt, first in zip(prompts, encoded, strict=True)
        for strength in strengths
    ]
    usage, draw = Usage(), MixtureDraw(prefixes=store, **how)
    made = list(converse(policies, conversations, config, rows, usage=usage, draw=draw))
    return {done.request.key: done for done in made}, usage


def request_of(ids, prompt=WORDS):
    return Request(EncodedPrompt(prompt, (tuple(ids),) * 2), 0, (0.5,))


def read_anew(answers):
    """Returns how many prompt tokens the answers' models would read without a cache."""
    prompts = {
        (done.request.key[0], done.request.prompt.tokens): done.request.prompt for done in answers.values()
    }
    return sum(len(context) for prompt in prompts.values() for context, _ in prompt.parts)


def assert_alike(found, expected, within=1e-4):
    """Fails unless both have the same answers, tokens alike and figures except for rounding."""
    assert found.keys() == expected.keys()
    apart = 0.0
    for key, done in found.items():
        other = expected[key]
        assert done.tokens == other.tokens and done.text == other.text, key
        pairs = [(getattr(done, name), getattr(other, name)) for name in FIGURES]
        apart = max([apart, *(np.abs(one - two).max(initial=0) for one, two in pairs)])
    print(f"figures of {len(found)} answers are within {apart:.1e}")
    assert apart <= within


def check(policies, prompts, *, within=1e-4, **how):
    """Compares conversations with and without a store; returns what was used with it, and the store."""
    expected, _ = talk(policies, prompts, **how)
    store = PrefixCache(most=1.0)
    found, usage = talk(policies, prompts, store, **how)
    assert_alike(found, expected, within)
    return found, usage, store
