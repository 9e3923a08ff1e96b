"""How much room caches have: in few steps, as a chunk of steps is compiled for each."""

from dera_jax import models

CHUNK = 16
"""Steps between two looks at which rows have ended: a row idles half as many on average."""


def full_room(prompt: int, max_new_tokens: int, chunk: int = CHUNK) -> int:
    """Returns the slots of a cache in which a prompt takes `prompt` and completions are as long as may be.

    Args:
      chunk: steps of the last chunk, which may begin at any token unless all have `CHUNK` steps.
    """
    # Whole chunks: the last one may reach beyond the longest completion.
    beyond = -max_new_tokens % CHUNK if chunk == CHUNK else chunk
    return models.whole_blocks(prompt + max_new_tokens + beyond)


def room_for(slots: int) -> int:
    """Returns the slots of a cache that is to hold `slots`: the next of 128, 192, 256, 384, 512, 768 …"""
    whole = models.whole_blocks(1 << (slots - 1).bit_length())
    least = whole * 3 // 4
    return least if slots <= least and least % models.BLOCK == 0 else whole
