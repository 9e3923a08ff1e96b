"""Bisection, for all rows at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HALVINGS = 40
"""After as many, an interval of 1 is 1e-12 long."""


def crossing(
    rises: Callable[[Array], Array], low: Float[Array, "rows 1"], high: Float[Array, "rows 1"]
) -> tuple[Float[Array, "rows 1"], Float[Array, "rows 1"]]:
    """Returns the ends of an interval in which a rising function comes to be above 0; below 0 at the first.

    Args:
      rises: from [rows, 1] to [rows, 1].
      low: where the search begins; high: where it ends, and the function is taken to be above 0.
    """

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        above = rises(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    return jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
