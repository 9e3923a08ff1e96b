"""The figure of two rewards against each other."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from dera_jax.analysis.plots import COLORS, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import write_bytes
from scripts.guided_search.figures import Line
from scripts.guided_search.frontier import MARKERS, draw

KINDS = {
    "plain": "plain decoding, λ = 0",
    "instruction": "realigned to an instruction, λ = 1, 2",
    "lookahead": "DeAL, weights from (1, 0) to (0, 1)",
    "best-of-8": "best of 8, the same weights",
}
"""Ways by the beginning of their names, and what the legend calls them."""


def plot_trade_off(lines: Sequence[Line], path: Path) -> None:
    """Writes the figure as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.6), layout="constrained")
        axes = figure.subplots()
        for (kind, label), color, marker in zip(KINDS.items(), COLORS, MARKERS, strict=False):
            own = [line for line in lines if line.way.startswith(kind)]
            draw(axes, own, "helpful", "harmless", {"color": color, "marker": marker, "label": label})
        axes.set_xlabel("helpful, by its reward model")
        axes.set_ylabel("harmless, by its reward model")
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
        write_bytes(path, png_of(figure))
