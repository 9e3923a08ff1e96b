"""Who is next: clients take turns, so that one with many requests does not keep the others waiting."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Full(Exception):
    """There is no room for more."""


class FairQueue(Generic[Item]):
    """A bounded queue for each client, one item taken from each in turn.

    >>> queue = FairQueue(8)
    >>> queue.add("a", [1, 2, 3])
    >>> queue.add("b", [4])
    >>> [queue.take() for _ in range(4)]
    [1, 4, 2, 3]
    """

    def __init__(self, limit: int):
        """Starts empty.

        Args:
          limit: items of all clients together.
        """
        self.limit = limit
        self._of: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, client: str, items: list[Item]) -> None:
        """Adds all of `items` behind those of their client.

        Raises:
          Full: they would be more than the limit together; none is added.
        """
        if len(self) + len(items) > self.limit:
            raise Full
        self._of.setdefault(client, deque()).extend(items)

    def take(self) -> Item:
        """Removes and returns the item whose turn it is."""
        client, items = next(iter(self._of.items()))
        item = items.popleft()
        del self._of[client]
        if items:  # behind the others
            self._of[client] = items
        return item

    def drop(self, item: Item) -> bool:
        """Removes an item, the very object; returns whether it was there."""
        for client, items in self._of.items():
            kept = deque(other for other in items if other is not item)
            if len(kept) < len(items):
                if kept:
                    self._of[client] = kept
                else:
                    del self._of[client]
                return True
        return False
