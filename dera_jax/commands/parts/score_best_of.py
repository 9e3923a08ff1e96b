"""What the best of n stored samples is worth, as a table."""

from collections.abc import Sequence
from pathlib import Path

from dera_jax.common.shown import shown


def tell_best_of(run: Path, ranking: str) -> str:
    """Returns the table of a run's samples, ranked by a reward or log-ratio.

    Raises:
      ValueError: there is no run, or its rows do not tell.
    """
    from dera_jax.analysis import best_of
    from dera_jax.results import reading
    from dera_jax.results.rows import WHOLE

    rows = reading.read_rows(run, WHOLE)
    if not rows:
        raise ValueError(f"{shown(run, 200)}: no rows yet")
    curves = best_of.best_of_curves(rows, ranking)
    return (
        f"best of n samples by {shown(ranking)}\n\n{_table(curves)}\n\n"
        "log n − (n − 1)/n bounds the KL of the best of n from the law of the samples, KL ≤ from the reference"
    )


def _table(curves: Sequence) -> str:
    from dera_jax.analysis.best_of import choice_bound
    from dera_jax.analysis.tables import Column, estimate_cells, format_columns, strength_cells

    names = dict.fromkeys(name for each in curves for name in each.rewards)
    return format_columns(
        [
            Column("λ", strength_cells([each.lambda_ for each in curves])),
            Column("n", [str(each.n) for each in curves]),
            Column("log n − (n − 1)/n", [f"{choice_bound(each.n):.3f}" for each in curves]),
            Column("KL ≤ (nats)", estimate_cells([each.kl_bound for each in curves])),
            *(
                Column(name, estimate_cells([each.rewards.get(name) for each in curves]), is_reward=True)
                for name in names
            ),
            Column("length (tokens)", estimate_cells([each.length for each in curves])),
        ]
    )
