"""Lengths that prompts are padded to, so that a few compiled programs serve all."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

SMALLEST_BUCKET = 16
"""Prompts are padded to at least this many tokens."""


def bucket_length(length: int) -> int:
    """Returns the padded length of a prompt of `length` tokens: the next power of two.

    It depends on the prompt alone, so that its completions do not depend on other prompts.
    """
    return max(SMALLEST_BUCKET, 1 << max(length - 1, 0).bit_length())


def padded_length(length: int) -> int:
    """Returns the padded length of whole texts: the next of 16, 24, 32, 48, 64, 96, 128 …"""
    whole = bucket_length(length)
    return whole * 3 // 4 if length <= whole * 3 // 4 else whole


def pad_left(tokens: Sequence[int], bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `tokens` at the end of `bucket` slots, and the mask of real tokens; both [1, bucket]."""
    padded, mask = np.zeros((1, bucket), np.int32), np.zeros((1, bucket), bool)
    if tokens:
        padded[0, -len(tokens) :] = tokens
        mask[0, -len(tokens) :] = True
    return padded, mask


def padded_batches(
    texts: Sequence[Sequence[int]], rows: int
) -> Iterator[tuple[list[int], Int[np.ndarray, "rows bucket"], Bool[np.ndarray, "rows bucket"]]]:
    """Yields texts in left-padded batches of `rows` rows, with their places in `texts`; rows beyond those are empty.

    Texts of about one length are together: the longest of a batch decides its shape.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        bucket = bucket_length(len(texts[part[-1]]))
        padded = [pad_left(texts[number], bucket) for number in part]
        padded += [pad_left([], bucket)] * (rows - len(part))
        yield part, *(np.concatenate(both) for both in zip(*padded, strict=True))
