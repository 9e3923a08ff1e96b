"""How often a reward model prefers what people preferred, and how far its probabilities can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from dera_jax.analysis.estimates import Estimate, estimate, estimate_to_json
from dera_jax.analysis.panels import GREY
from dera_jax.analysis.plots import STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import write_bytes

BINS = 8


@dataclass(frozen=True)
class Bin:
    """Pairs of about the same confidence."""

    confidence: float
    """Mean σ(|r_w − r_l|), from 0.5 to 1."""
    accuracy: Estimate
    count: int


@dataclass(frozen=True)
class Calibration:
    """What margins r_w − r_l of held-out pairs say of a reward model."""

    accuracy: Estimate
    """Share of pairs with a margin above 0; a margin of 0 counts half."""
    loss: float
    """Mean −log σ(margin), in nats; log 2 is a coin's."""
    error: float
    """Expected calibration error, Σ share · |confidence − accuracy| over the bins."""
    bins: tuple[Bin, ...]

    def __str__(self) -> str:
        """Returns one line for the user."""
        found = self.accuracy
        return (
            f"held-out accuracy {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] "
            f"({sum(b.count for b in self.bins)} pairs); loss {self.loss:.4f} nats, calibration error {self.error:.3f}"
        )


def calibrate(margins: Sequence[float] | Float[np.ndarray, " pairs"]) -> Calibration:
    """Returns the calibration over bins of equally many pairs.

    By Bradley–Terry σ(|r_w − r_l|) is the probability that the completion of the higher reward is
    the preferred one.

    Raises:
      ValueError: no pairs.
    """
    margins = np.asarray(margins, float)
    if not margins.size:
        raise ValueError("expected held-out pairs, found none")
    if not np.isfinite(margins).all():
        raise ValueError(f"expected finite margins, found {margins[~np.isfinite(margins)][0]}")
    right = np.where(margins == 0, 0.5, margins > 0)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if part.size]
    bins = tuple(
        Bin(float(confidence[part].mean()), estimate(right[part], range(part.size)), part.size)
        for part in parts
    )
    error = sum(one.count * abs(one.confidence - one.accuracy.mean) for one in bins) / margins.size
    loss = float(np.logaddexp(0, -margins).mean())
    return Calibration(estimate(right, range(right.size)), loss, error, bins)


def as_json(calibration: Calibration) -> dict:
    """Returns a calibration as a JSON object."""
    bins = [vars(one) | {"accuracy": estimate_to_json(one.accuracy)} for one in calibration.bins]
    return vars(calibration) | {"accuracy": estimate_to_json(calibration.accuracy), "bins": bins}


def plot_calibration(calibration: Calibration, path: Path, about: str = "") -> None:
    """Writes accuracy over confidence, and how confident the model is, as a PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.4))
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.8, linestyle="--")
        axes.text(
            0.97, 0.985, "calibrated", color=GREY, ha="right", va="bottom",
            rotation=45, rotation_mode="anchor", transform_rotates_text=True,
        )  # fmt: skip
        x, y = [b.confidence for b in calibration.bins], [b.accuracy.mean for b in calibration.bins]
        low = [b.accuracy.mean - b.accuracy.low for b in calibration.bins]
        high = [b.accuracy.high - b.accuracy.mean for b in calibration.bins]
        axes.errorbar(
            x, y, yerr=[low, high], fmt="o-", color="#0072B2", linewidth=1.2, markersize=4, capsize=2
        )
        axes.set_xlim(0.49, 1.0)
        axes.set_ylim(
            np.nanmin([0.45, *(b.accuracy.low - 0.03 for b in calibration.bins), min(y) - 0.05]), 1.02
        )
        axes.set_xlabel("confidence  σ(|r_chosen − r_rejected|)")
        axes.set_ylabel("share of pairs ranked as people did")
        count = sum(b.count for b in calibration.bins)
        axes.set_title(
            f"{about}{' · ' * bool(about)}{count} held-out pairs\n"
            f"accuracy {calibration.accuracy.mean:.3f}, calibration error {calibration.error:.3f}",
            fontsize=8,
            loc="left",
        )
        write_bytes(path, png_of(figure))
