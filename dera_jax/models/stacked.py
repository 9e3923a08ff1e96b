"""Blocks as a loop: compiled once however many there are, where reading all tokens takes minutes to compile."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def scan_blocks(
    blocks: Sequence[nnx.Module],
    x: Float[Array, "rows length width"],
    seen: Sequence[object],
    call: Callable,
) -> tuple[Float[Array, "rows length width"], list]:
    """Returns what all blocks, one after the other, make of `x`, and what each leaves beside it.

    Their parameters are stacked, a copy that the compiler makes together with their rounding. Blocks of
    several kinds in turn (windows, say) are a loop over turns.

    Args:
      seen: what each block sees beside `x`; blocks of one kind the same object.
      call: (block, x, seen, None) to x and what it leaves.
    """
    graphs, states = zip(*map(nnx.split, blocks), strict=True)
    turn = _period([(graph, id(each)) for graph, each in zip(graphs, seen, strict=True)])
    turns = len(blocks) // turn
    stacked = tuple(
        jax.tree.map(lambda *a: jnp.stack(a), *states[n : turns * turn : turn]) for n in range(turn)
    )

    def body(x, states):
        left = []
        for graph, state, each in zip(graphs, states, seen, strict=False):
            x, present = call(nnx.merge(graph, state), x, each, None)
            left.append(present)
        return x, left

    x, left = jax.lax.scan(body, x, stacked)
    present = [jax.tree.map(lambda a, n=n: a[n], each) for n in range(turns) for each in left]
    for block, each in zip(blocks[turns * turn :], seen[turns * turn :], strict=True):
        x, last = call(block, x, each, None)
        present.append(last)
    return x, present


def _period(kinds: Sequence[object]) -> int:
    """Returns after how many blocks the kinds repeat, the last time perhaps in part."""
    count = len(kinds)
    return next(n for n in range(1, count + 1) if list(kinds[n:]) == list(kinds[: count - n]))
