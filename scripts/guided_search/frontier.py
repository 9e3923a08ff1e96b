"""The figure of reward against KL, and against the price."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.plots import COLORS, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import write_bytes
from scripts.guided_search.figures import Line

KINDS = {
    "realigned": "realigned, λ = 0 … 1.5",
    "best-of": "best of 2, 4, 16",
    "best-of-poisson": "best of 1 + Poisson(μ)",
    "sampled-lookahead": "DeAL with samples, 2 and 8 candidates",
    "controlled": "controlled decoding, 1/β = 0, 2, 5",
    "value-blocks": "blocks of 16 by the value, 8 candidates",
}
"""Ways by the beginning of their names, and what the legend calls them."""
MARKERS = "osD^vP"
PRICES = (1, 2, 5, 10, 20)
"""Ticks of forward passes."""


def plot_frontier(lines: Sequence[Line], path: Path) -> None:
    """Writes the figure as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        by_kl, by_price = figure.subplots(1, 2, sharey=True)
        for (kind, label), color, marker in zip(KINDS.items(), COLORS, MARKERS, strict=False):
            own = [line for line in lines if _kind(line.way) == kind]
            look = {"color": color, "marker": marker, "label": label}
            draw(by_kl, own, "KL at most", "in the band", look)
            draw(by_price, own, "passes a token", "in the band", look)
        by_kl.set_xlabel("KL to the reference, or its bound (nats)")
        by_kl.set_ylabel("share of paragraphs in the band")
        by_price.set_xlabel("forward passes of each model for a token")
        by_price.set_xscale("log")
        by_price.set_xticks(PRICES, [str(price) for price in PRICES])
        by_price.minorticks_off()
        figure.legend(*by_kl.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
        write_bytes(path, png_of(figure))


def _kind(way: str) -> str:
    return max((kind for kind in KINDS if way.startswith(kind)), key=len, default="")


def draw(axes: Axes, lines: Sequence[Line], across: str, up: str, look: dict) -> None:
    """Draws lines as one curve of a quantity over another, with the intervals of both."""
    if not lines:
        return
    x, y = ([line.found[name] for line in lines] for name in (across, up))
    axes.errorbar(
        [value.mean for value in x],
        [value.mean for value in y],
        yerr=_bars(y),
        xerr=_bars(x),
        linestyle="-",
        lw=1,
        elinewidth=0.7,
        markersize=4,
        **look,
    )


def _bars(values: Sequence[Estimate]) -> np.ndarray:
    return np.nan_to_num(np.abs([[v.mean - v.low, v.high - v.mean] for v in values])).T
