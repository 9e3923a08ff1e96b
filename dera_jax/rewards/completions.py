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
    whole_tokens: Sequence[Sequence[int]] | None = None
    """Ids with EOS, where it was drawn."""
    step: int = 0
    """Of the training that draws them."""

    def __post_init__(self):
        fields = {"prompts": self.prompts, "tokens": self.tokens, "finish_reasons": self.finish_reasons}
        fields["whole_tokens"] = self.whole_tokens
        for name, values in {**fields, **self.columns}.items():
            if values is not None and len(values) != len(self.completions):
                raise ValueError(f"{name}: expected {len(self.completions)} entries, found {len(values)}")

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping],
        columns: Sequence[Mapping],
        decode: Callable[[Sequence[int]], str],
        step: int = 0,
    ) -> "Completions":
        """Returns what rewards see of rows, those of a sweep or those that a training has drawn.

        Args:
          rows: with the fields that rows of a sweep have.
          columns: the other fields of each row's prompt.
        """
        names = sorted({name for each in columns for name in each})
        whole = [row["tokens"] for row in rows] if all("tokens" in row for row in rows) else None
        return cls(
            prompts=[row["prompt"] for row in rows],
            completions=[row["completion"] for row in rows],
            tokens=whole and [ids[: row["length"]] for ids, row in zip(whole, rows, strict=True)],
            finish_reasons=[row["finish_reason"] for row in rows],
            decode=decode,
            columns={name: [each.get(name) for each in columns] for name in names},
            whole_tokens=whole,
            step=step,
        )

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
