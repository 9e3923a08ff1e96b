"""Records that cannot be used are left out, counted and said: one of many does not end a run.

A record that is of another kind (a field is missing, a number where text belongs) ends it at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dera_jax.common.shown import shown

Item = TypeVar("Item")
Made = TypeVar("Made")
MANY = 0.1
"""Share of records whose loss is worth a warning."""
KEEP_START, KEEP_END = TRUNCATION = "keep_start", "keep_end"
"""What is kept of a text that is too long, as TRL names it."""


class Unusable(ValueError):
    """A record is of the right kind and cannot be used.

    Args:
      reason: the same for all such records; they are counted by it.
      detail: what is to be said of this one besides.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail


@dataclass
class Dropped:
    """Records that were left out, and why."""

    reasons: dict[str, int] = field(default_factory=dict)
    """How many, by reason."""
    first: dict[str, str] = field(default_factory=dict)
    """File and line of the first, by reason."""

    def add(self, why: Unusable, where: str) -> None:
        """Counts a record."""
        self.reasons[why.reason] = self.reasons.get(why.reason, 0) + 1
        self.first.setdefault(why.reason, f"{where}: {why.detail}" if why.detail else where)

    def __or__(self, other: "Dropped") -> "Dropped":
        """Returns both together, of the same data."""
        counts = {r: self.reasons.get(r, 0) + other.reasons.get(r, 0) for r in self.reasons | other.reasons}
        return Dropped(counts, other.first | self.first)

    @property
    def count(self) -> int:
        """Of all of them."""
        return sum(self.reasons.values())

    def __str__(self) -> str:
        """Returns how many, why, and where the first one is.

        >>> print(Dropped({"an answer is empty": 2}, {"an answer is empty": "data.jsonl:7"}))
        2 records dropped (2 an answer is empty, the first data.jsonl:7)
        """
        why = "; ".join(f"{n} {reason}, the first {self.first[reason]}" for reason, n in self.reasons.items())
        return f"{self.count} record{'s' * (self.count != 1)} dropped{f' ({why})' * bool(why)}"

    def told(self, source: str, used: int, more: str = "") -> str:
        """Returns the line for the user: a warning if they are many."""
        many = self.count > MANY * (used + self.count)
        return f"{'warning: ' * many}{shown(source, 200)}: {used} used{more}; {self}"


def keep_usable(
    items: Iterable[Item], use: Callable[[Item], Made], where: Callable[[Item], str]
) -> tuple[list[Made], Dropped]:
    """Returns what `use` makes of the items that can be used, and what became of the others.

    Args:
      use: raises Unusable where it cannot.
      where: file and line of an item.

    Raises:
      ValueError: none of them can be used.
    """
    made, dropped = [], Dropped()
    for item in items:
        try:
            made.append(use(item))
        except Unusable as why:
            dropped.add(why, where(item))
            last = f"{where(item)}: {why}"
    if made:
        return made, dropped
    raise ValueError(last if dropped.count == 1 else f"no record can be used: {dropped}")


def check_text(text: str) -> None:
    """Raises Unusable where a text holds half of a character, as JSON allows it and no tokenizer does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable(r"half of a surrogate pair in it, such as \ud83d") from None


def check_messages(messages: Sequence[dict]) -> None:
    """Raises Unusable where a message holds half of a character."""
    for message in messages:
        check_text(message["role"] + message["content"])
