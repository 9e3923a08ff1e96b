"""Records of training data, and a chat template for them."""

from dera_jax.data.records import Record

LONG = 10**6
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Ends every turn with EOS and a line break, as ChatML does."""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def record(number=0, **fields):
    return Record(fields, f"f:{number + 1}", number)
