"""An optimum, and distances from it, as text and as JSON."""

import math
from collections.abc import Mapping, Sequence

from dera_jax.analysis.estimates import estimate_to_json
from dera_jax.analysis.optimum import Distance, OptimumPoint
from dera_jax.analysis.tables import Column, estimate_cells, format_columns, short_names, strength_cells


def tell_optimum(
    points: Sequence[OptimumPoint],
    accepted: Mapping[float, Sequence[bool]],
    reward: str,
    beta: float,
    completions: int,
) -> str:
    """Returns the table of an optimum."""
    columns = [
        Column("λ", strength_cells([(point.lambda_,) for point in points])),
        Column("β/λ", [f"{beta / point.lambda_:.3g}" if point.lambda_ else "∞" for point in points]),
        Column(reward, estimate_cells([point.figures["reward"] for point in points]), is_reward=True),
        Column("KL (nats)", estimate_cells([point.figures["kl"] for point in points])),
        Column("length (tokens)", estimate_cells([point.figures["length"] for point in points])),
        Column("J*", estimate_cells([point.figures["objective"] for point in points])),
        Column("reference", estimate_cells([point.figures["reference"] for point in points])),
        Column("effective", [f"{point.effective:.0%}" for point in points]),
        Column("exact", [_share(accepted[point.lambda_]) for point in points]),
    ]
    prompts = len(points[0].log_z)
    return (
        f"{format_columns(columns)}\n\n"
        f"the optimum at β/λ, from {completions} completions of the reference to {prompts} prompts; ± is half a 95 % "
        "interval over prompts\n"
        "J*: reward − β/λ · KL of the optimum, the most that any policy can have; reference: KL(reference ‖ optimum) "
        "in nats\n"
        "effective: share of the completions that carries the weight; exact: share of the rows that are exact samples, "
        "the others are drawn by their weights"
    )


def _share(accepted: Sequence[bool]) -> str:
    return f"{sum(accepted) / len(accepted):.0%}"


def tell_distances(distances: Sequence[tuple[str, Distance]]) -> str:
    """Returns the table of distances."""
    found = [each for _, each in distances]
    names = short_names(list(dict.fromkeys(name for name, _ in distances)), width=24)
    columns = [
        Column("run", [names[name] for name, _ in distances]),
        Column("λ", [f"{each.lambda_:.4g}" for each in found]),
        Column("β/λ", [f"{each.beta:.3g}" for each in found]),
        Column("reward", estimate_cells([each.reward for each in found])),
        Column("KL (nats)", estimate_cells([each.kl for each in found])),
        Column("J", estimate_cells([each.objective for each in found])),
        Column("J*", estimate_cells([each.best for each in found])),
        Column("KL to optimum", estimate_cells([each.distance for each in found])),
        Column("share", ["–" if math.isnan(each.share.mean) else f"{each.share.mean:.0%}" for each in found]),
    ]
    return (
        f"{format_columns(columns)}\n\n"
        "J: reward − β/λ · KL; J*: of the optimum; KL to optimum: (J* − J)·λ/β = KL(policy ‖ optimum), in nats; 0\n"
        "would be perfect training; share: of what J can gain over the reference, below 0 where training made it worse"
    )


def optimum_to_json(
    points: Sequence[OptimumPoint],
    accepted: Mapping[float, Sequence[bool]],
    distances: Sequence[tuple[str, Distance]],
) -> dict:
    """Returns all figures."""
    return {
        "points": [
            {
                "lambda": point.lambda_,
                "effective_share": point.effective,
                "exact_share": sum(accepted[point.lambda_]) / len(accepted[point.lambda_]),
                **{name: estimate_to_json(each) for name, each in point.figures.items()},
            }
            for point in points
        ],
        "distances": [
            {
                "run": name,
                "lambda": each.lambda_,
                "beta": each.beta,
                "prompts": each.prompts,
                **{
                    field: estimate_to_json(getattr(each, field))
                    for field in ("reward", "kl", "objective", "best", "distance", "share")
                },
            }
            for name, each in distances
        ],
    }
