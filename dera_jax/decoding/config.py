"""How completions are drawn."""

import math
from dataclasses import asdict, dataclass

from dera_jax.common.checks import check_choice, check_count, check_number, check_seed, take_plain_numbers
from dera_jax.common.choices import KV_CACHES, one_of

DRAFTERS = ("none", "auto", "reference", "aligned", "ngram")
LONGEST_DRAFT = 64


@dataclass(frozen=True)
class DecodeConfig:
    """How completions are drawn. Applied after mixing."""

    max_new_tokens: int = 128
    """Longest completion, in tokens; ≥ 1."""
    temperature: float = 1.0
    """Divides the mixed logits; ≥ 0, and 0 (or less than 1e-30) takes the most probable token."""
    top_k: int | None = None
    """Number of most probable tokens kept; ≥ 1. None keeps all, as do 0 and −1, which other libraries say."""
    top_p: float | None = None
    """Smallest set of tokens with at least this probability, in (0, 1]. None keeps all."""
    stop: tuple[str, ...] | str = ()
    """Texts that end a completion, or one; what is whole first ends it, and is left out of it."""
    seed: int = 0
    """Of all randomness; ≥ 0."""
    kv_cache: str = one_of(KV_CACHES, "auto")
    """auto, bfloat16 or int8 (a float scale per token and head): how keys and values are kept."""

    def __post_init__(self):
        take_plain_numbers(self)
        if isinstance(self.stop, str):  # its letters would be taken for stop texts
            object.__setattr__(self, "stop", (self.stop,))
        check_choice("kv_cache", self.kv_cache, KV_CACHES)
        check_count("max_new_tokens", self.max_new_tokens, most=10**6)
        check_number("temperature", self.temperature, 0.0, math.inf)
        if isinstance(self.top_k, int) and self.top_k in (0, -1) and not isinstance(self.top_k, bool):
            object.__setattr__(self, "top_k", None)
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.top_p is not None:
            check_number("top_p", self.top_p, 0.0, 1.0)
            if self.top_p == 0:
                raise ValueError("top_p: expected a number in (0, 1], got 0")
        check_seed(self.seed)
        if not all(self.stop):
            raise ValueError("stop: expected texts with at least one character, got an empty one")

    def identity(self) -> dict:
        """Returns what rows depend on; a setting that older runs did not have is left out at its default."""
        told = asdict(self)
        if self.kv_cache == "auto":
            del told["kv_cache"]
        return told


@dataclass(frozen=True)
class DrawConfig:
    """How completions of the realigned policy are computed: what they say does not depend on it."""

    share: bool = True
    """Strengths of one prompt and sample share a row for as long as they draw the same tokens."""
    draft: str = one_of(DRAFTERS, "none")
    """Who drafts tokens that are then checked several at a time: nobody (none), the reference, the aligned model, or
    what followed the last tokens before (ngram); auto: whoever makes it faster, where no rows are shared."""
    draft_length: int = 4
    """Tokens drafted at a time; ≥ 1."""

    def __post_init__(self):
        take_plain_numbers(self)
        check_choice("draft", self.draft, DRAFTERS)
        check_count("draft_length", self.draft_length, most=LONGEST_DRAFT)


def rows_of(rows: int | str | None, requests: int, least: int = 1) -> int:
    """Returns the rows of a batch that makes `requests` completions: `rows`, or (None, "auto") at most 32.

    Args:
      least: rows that a completion takes at a time.
    """
    if rows is None or rows == "auto":
        return max(least, min(32, max(1, requests)))
    if isinstance(rows, str):
        raise ValueError(f"rows: expected a whole number or auto, got {rows!r:.40}")
    check_count("rows", rows)
    if rows < least:
        raise ValueError(f"rows: expected at least {least}, the candidates of one completion, got {rows}")
    return rows
