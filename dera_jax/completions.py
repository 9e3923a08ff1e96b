"""Completions as rewards and judges see them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Completions:
    """What rewards see: one entry per completion in each field."""

    prompts: Sequence[str | Sequence[Mapping]]
    """Texts, or chats as lists of messages."""
    completions: Sequence[str]
    tokens: Sequence[Sequence[int]] | None
    """Ids of each completion, EOS left out; None if rows were kept without them."""
    finish_reasons: Sequence[str]
    """`eos`, `stop` (a stop string was met) or `length` (no room for more)."""
    decode: Callable[[Sequence[int]], str]
    """Ids to text, as the completions were made."""
    columns: Mapping[str, Sequence] = field(default_factory=dict)
    """The prompts' other fields."""

    def __post_init__(self):
        fields = {"prompts": self.prompts, "tokens": self.tokens, "finish_reasons": self.finish_reasons}
        for name, values in {**fields, **self.columns}.items():
            if values is not None and len(values) != len(self.completions):
                raise ValueError(f"{name}: expected {len(self.completions)} entries, found {len(values)}")

    def known_tokens(self) -> Sequence[Sequence[int]]:
        """Returns `tokens`, for a reward that cannot do without.

        Raises:
          ValueError: there are none.
        """
        if self.tokens is None:
            raise ValueError(
                "the reward reads token ids, and the rows were kept without them: decode them again"
            )
        return self.tokens
