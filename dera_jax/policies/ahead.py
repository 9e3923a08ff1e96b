"""Work that other threads do ahead of whoever takes its results."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
THREADS = min(4, os.cpu_count() or 1)


def ahead(call: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yields what `call` makes of each item, in their order; no more than `THREADS` are made before they are taken.

    Raises:
      Exception: what `call` raised, in the item's turn.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
