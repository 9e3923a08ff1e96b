"""The figure of all rules on one pair: what each gains for the KL that it pays."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from dera_jax.analysis.plots import COLORS, PANEL, STYLE
from dera_jax.analysis.png import png_of
from dera_jax.common.files import write_bytes

PANELS = {
    "strengths that change, sets of words": (
        "linear", "plausible", "contrastive+plausible", "kl-budget", "first", "ramp", "decay", "nudging", "entropy",
        "common",
    ),
    "other means": (
        "linear", "power:p=1", "power:p=-1", "minimum", "maximum", "alpha-divergence", "jensen-shannon",
        "probabilities", "nudging+confidence+power:p=1",
    ),
}  # fmt: skip
MARKERS, OTHERS = "osv^D<>pX", COLORS[:-1]


def plot_kin(lines: Sequence[dict], path: Path) -> None:
    """Writes reward against KL as PNG, a line for each rule, whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * PANEL[0] + 1, PANEL[1] + 1))
        for ax, (title, rules) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
            for number, rule in enumerate(rules):
                own = [line for line in lines if line["rule"] == rule]
                figures = [[line[name]["mean"] for line in own] for name in ("kl", "reward")]
                color = "black" if rule == "linear" else OTHERS[(number - 1) % len(OTHERS)]
                ax.plot(*figures, marker=MARKERS[number % len(MARKERS)], color=color, label=rule, linewidth=1)
            ax.set_title(title)
            ax.set_xlabel("KL to the reference, nats per completion")
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xticks([0, 0.5, 1, 2, 5, 10, 20])
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_xlim(0, 1.15 * max(line["kl"]["mean"] for line in lines))
            ax.legend(fontsize=7)
        figure.axes[0].set_ylabel("reward")
        write_bytes(path, png_of(figure))
