import dataclasses
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from dera_jax.analysis import panels, plots
from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.plots import plot_sweep
from dera_jax.analysis.png import png_of
from dera_jax.analysis.summaries import Summary
from dera_jax.analysis.tables import format_table
from tests.support.processes import ROOT

POLITE = "python:my_rewards:politeness"


def estimate(mean, half_width=0.1):
    return Estimate(mean, mean - half_width, mean + half_width)


def summary(*lambda_, beta=0.1, **more):
    total = sum(lambda_)
    known = beta is not None and len(lambda_) == 1 and total >= 0
    fields = {
        "lambda_": tuple(map(float, lambda_)),
        "beta": beta,
        "beta_effective": (beta / total if total else math.inf) if known else None,
        "n": 128,
        "prompts": 64,
        "coverage": 1.0,
        "rewards": {"length:40:60": estimate(-math.exp(-2 * total), 0.05)},
        "scored": {"length:40:60": 128},
        "reward_differences": {},
        "kl_to_reference": estimate(3 * total**2, 0.2),
        "length": estimate(50 + 40 * math.exp(-total), 2.0),
        "log_ratio": estimate(total),
        "ended": 0.75,
        "ess": None,
        "tokens": 9000,
    }
    return Summary(**(fields | more))


def size(path):
    """Returns width and height, read from the header of the PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def pixels(path):
    import matplotlib.image

    return matplotlib.image.imread(path)


def test_the_terminal_table_is_aligned():
    summaries = [
        summary(0),
        summary(1 / 6, rewards={}),
        summary(1),
        summary(-1, beta=None, length=Estimate(7.0, math.nan, math.nan)),
    ]
    lines = format_table(summaries).split("\n")
    assert len({len(line) for line in lines[:6]}) == 1 and len(lines[0]) <= 100
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[:6]]
    assert cells[0] == ["λ", "β/λ", "length:40:60", "KL (nats)", "length (tokens)", "ended"]
    assert cells[2] == ["0", "∞", "-1.000 ± 0.050", "0.00 ± 0.20", "90.0 ± 2.0", "75 %"]
    assert cells[3] == ["0.1667", "0.6", "—", "0.08 ± 0.20", "83.9 ± 2.0", "75 %"]
    assert cells[4] == ["1", "0.1", "-0.135 ± 0.050", "3.00 ± 0.20", "64.7 ± 2.0", "75 %"]
    assert cells[5] == ["-1", "—", "-7.389 ± 0.050", "3.00 ± 0.20", "7.0", "75 %"]
    legend = "larger λ = smaller β = weaker regularization; ± is half a 95 % interval over prompts"
    assert lines[6:] == ["", legend]


def test_strengths_of_several_models_are_said_to_be_weights_and_no_beta():
    legend = format_table([summary(0.5, 0.5), summary(0, 1)]).split("\n\n")[-1]
    several = "λ: weight of each aligned model, the reference has the rest"
    assert legend == f"{several}; ± is half a 95 % interval over prompts"
    alone = dict.fromkeys(("kl_to_reference", "length"), Estimate(1.0, math.nan, math.nan))
    assert format_table([summary(0.5, 0.5, rewards={}, **alone)]).endswith(f"\n\n{several}")


def test_markdown_and_latex_are_exact():
    odd = summary(0.5, rewards={"keywords:a_b|50%\\n": estimate(-0.25, 0.125)})
    assert format_table([odd], "markdown") == (
        "| λ | β/λ | `keywords:a_b\\|50%\\n` | KL (nats) | length (tokens) | ended |\n"
        "| --: | --: | --: | --: | --: | --: |\n"
        "| 0.5 | 0.2 | -0.25 ± 0.12 | 0.75 ± 0.20 | 74.3 ± 2.0 | 75 % |"
    )
    assert format_table([odd, summary(0, 0, rewards={})], "latex") == "\n".join(
        [
            r"\begin{tabular}{rrrrrr}",
            r"\toprule",
            r"$\lambda$ & $\beta/\lambda$ & \texttt{keywords:a\_b|50\%\textbackslash{}n} "
            r"& KL (nats) & length (tokens) & ended \\",
            r"\midrule",
            r"$0.5$ & $0.2$ & $-0.25 \pm 0.12$ & $0.75 \pm 0.20$ & $74.3 \pm 2.0$ & $75\,\%$ \\",
            r"$0+0$ & --- & --- & $0.00 \pm 0.20$ & $90.0 \pm 2.0$ & $75\,\%$ \\",
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def test_tables_wider_than_a_terminal_are_broken_up():
    names = [POLITE, "model:runs/reward-model", "lexicon:vader.txt", "slots", "length:40:60"]
    table = format_table([summary(v, rewards=dict.fromkeys(names, estimate(1.0))) for v in (0, 1)])
    assert max(map(len, table.split("\n"))) <= 100
    assert "…politeness" in table and "…runs/reward-model" in table
    assert sum(line.startswith("λ") for line in table.split("\n")) == 2
    for heading in ("slots", "lexicon:vader.txt", "length (tokens)", "ended"):
        assert table.count(heading) == 1


def test_names_and_strengths_stay_distinct_when_shortened():
    names = ["model:first/a/very/long/path/indeed", "model:other/a/very/long/path/indeed"]
    table = format_table(
        [summary(0.30000000000000004, rewards=dict.fromkeys(names, estimate(1.0))), summary(0.3)]
    )
    assert all(name in table for name in names)
    assert "0.30000000000000004" in table


def test_tables_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="expected terminal, markdown, latex, found 'html'"):
        format_table([summary(1)], "html")
    with pytest.raises(ValueError, match="no rows"):
        format_table([])


GRID = [(a, b) for a in (0, 0.5, 1) for b in (0, 1)]
TWO = {"length:40:60": estimate(-0.5), POLITE: estimate(0.5)}
SWEEPS = {
    "one reward": ([summary(v) for v in (0, 0.5, 1, 2)], (1400, 1140)),
    "one strength": ([summary(0.7)], (1400, 1140)),
    "no reward": ([summary(v, rewards={}) for v in (-1, 0, 1)], (1400, 1140)),
    "no reward, no ratio": ([summary(v, rewards={}, log_ratio=None) for v in (0, 1)], (1400, 600)),
    "two rewards": ([summary(v, rewards=TWO) for v in (0, 1 / 6, 1, 5, 100)], (2100, 1140)),
    "unknown beta": ([summary(v, beta=None) for v in (0, 1)], (1400, 1140)),
    "one prompt": ([summary(v, length=Estimate(9.0, math.nan, math.nan)) for v in (0, 1)], (1400, 1140)),
    "reward in part": ([summary(0, rewards={}), summary(1)], (1400, 1140)),
    "own strengths": ([summary(v, coverage=0.2) for v in (0.1, 0.5, 1.5)], (1400, 1140)),
    "odd names": ([summary(v, rewards={"f$x_{$ 汉 |": estimate(v)}) for v in (0, 1)], (1400, 1140)),
    "two aligned models": ([summary(*v) for v in GRID], (2100, 600)),
    "no grid": ([summary(0.5, 0.5), summary(1, 0)], (2100, 600)),
    "three aligned models": ([summary(0, 0, 0), summary(1, 0, 0)], (1400, 1140)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_has_a_figure(tmp_path, name):
    summaries, expected = SWEEPS[name]
    path = tmp_path / "sweep.png"
    plot_sweep({"toy": summaries}, path)
    assert size(path) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.png"]
    # Ink, and paper.
    assert 0.01 < np.mean(pixels(path)[..., :3].min(axis=-1) < 0.9) < 0.7


MANY = {f"keywords:{word}": estimate(0.5) for word in ("the", "a", "of")}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_runs_of_different_rewards_share_a_figure(tmp_path, number):
    """Panels that some runs have nothing for; that a layout collapses is a warning, here an error."""
    runs = {
        f"first {count}": [summary(v, rewards=dict(list(MANY.items())[:count])) for v in (0, 1, 2)]
        for count in (number, *range(number + 1))
    }
    # In both orders: the first panel, and the one over the KL, may lack the first run.
    for order in (list(runs), list(runs)[::-1]):
        path = tmp_path / "x.png"
        plot_sweep({name: runs[name] for name in order}, path)
        dark = pixels(path)[..., :3].min(axis=-1) < 0.95
        height, width = dark.shape
        # Axes take their room: the first panel's frame runs along most of its height.
        rows, columns = (2, 2) if number == 1 else (2, 3)
        frame = dark[: height // rows, : width // columns].sum(axis=0).max()
        assert frame > 0.5 * height / rows


def test_strengths_of_different_prompts_are_points_without_a_line():
    """Each strength of `--lambda=prompt` has some of the prompts: its means differ by them."""
    quantity = panels.Quantity("length", lambda s: s.length)

    def lines(summaries, draw):
        ax = Figure().subplots()
        draw(ax, [panels.Curve("a", summaries, "red", "o")], quantity)
        data = [line for line in ax.lines if line.get_marker() == "o"]
        return [(len(line.get_xdata()), line.get_linestyle()) for line in data]

    shared = [summary(v) for v in (0, 1, 2)]
    own = [summary(v, coverage=0.5) for v in (0.3, 0.6)]
    for draw in (panels.plot_over_strength, panels.plot_frontier):
        assert lines(shared, draw) == [(3, "-")]
        assert lines(own, draw) == [(2, "None")]
        assert sorted(lines(own + shared, draw)) == [(2, "None"), (3, "-")]
        assert lines([summary(0.5)], draw) == [(1, "None")]


def test_known_intervals_are_drawn_beside_unknown_ones():
    """A band would lack the intervals next to one that is not known: bars are drawn instead."""
    quantity = panels.Quantity("length", lambda s: s.length)
    summaries = [summary(0), summary(1, length=Estimate(9.0, math.nan, math.nan)), summary(2)]
    ax = Figure().subplots()
    panels.plot_over_strength(ax, [panels.Curve("a", summaries, "red", "o")], quantity)
    (bars,) = ax.collections
    ends = [path.vertices[:, 1] for path in bars.get_paths() if np.isfinite(path.vertices).all()]
    np.testing.assert_array_equal(ends, [[s.length.low, s.length.high] for s in (summaries[0], summaries[2])])


@pytest.mark.slow
def test_figures_show_their_runs_and_nothing_else(tmp_path):
    first = [summary(v) for v in (0, 0.5, 1)]
    moved = [dataclasses.replace(s, length=estimate(s.length.mean / 2)) for s in first]

    def figure(runs, about=""):
        plot_sweep(runs, tmp_path / "x.png", about)
        return (tmp_path / "x.png").read_bytes()

    assert figure({"a": first}) == figure({"a": first})
    assert figure({"a": first}) == figure({"a": first, "empty": []})
    assert figure({"a": first}) != figure({"a": moved})
    assert figure({"a": first}) != figure({"a": first}, "reference → aligned")
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    orange = np.array([0xD5, 0x5E, 0x00]) / 255
    for runs, colors in (({"a": first}, [blue]), ({"a": first, "b": moved}, [blue, orange])):
        figure(runs)
        image = pixels(tmp_path / "x.png")[..., :3]
        for color in (blue, orange):
            seen = np.sum(np.abs(image - color).max(axis=-1) < 0.01) > 500
            assert seen == any(color is c for c in colors)


def test_no_place_of_a_grid_is_blank():
    """Rewards over the KL fill what is left."""
    for number in range(1, 8):
        rewards = {f"keywords:{word}": estimate(0.5) for word in "abcdefg"[:number]}
        curves = [panels.Curve("a", [summary(v, rewards=rewards) for v in (0, 1)], "red", "o")]
        axes = plots._panels(curves, "").axes
        assert len(axes) == math.prod(plots._grid(len(axes))) >= number + 3


def test_figures_refuse_what_they_cannot_show(tmp_path):
    with pytest.raises(ValueError, match="no rows to plot"):
        plot_sweep({"a": []}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"different numbers of aligned models: \[1, 2\]"):
        plot_sweep({"a": [summary(1)], "b": [summary(1, 0)]}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"cannot write .*nowhere/x\.png: No such file or directory"):
        plot_sweep({"a": [summary(1)]}, tmp_path / "nowhere" / "x.png")


def test_figures_and_rows_need_no_jax():
    script = """if True:
        import sys
        sys.modules["jax"] = None
        from dera_jax import format_table, plot_sweep, read_rows, summarize
    """
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_palette_keeps_what_a_figure_shows(tmp_path):
    """Equal figures are equal bytes; shades of few pixels may move, and the file is smaller."""
    import matplotlib.image

    def drawn():
        figure = Figure(figsize=(3, 2))
        ax = figure.subplots()
        for n, color in enumerate(plots.COLORS):
            ax.errorbar([0, 1, 2], [n, n + 1, n], 0.3, color=color, marker=plots.MARKERS[n], alpha=0.8)
        return figure

    drawn().savefig(tmp_path / "full.png", dpi=100)
    (tmp_path / "palette.png").write_bytes(png_of(drawn(), 100))
    full, palette = (
        matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3] for name in ("full", "palette")
    )
    assert full.shape == palette.shape
    difference = np.abs(full - palette).max(axis=-1)
    assert difference.mean() < 0.005 and np.mean(difference > 0.1) < 0.01
    assert (tmp_path / "palette.png").stat().st_size < 0.6 * (tmp_path / "full.png").stat().st_size
    assert png_of(drawn(), 100) == png_of(drawn(), 100)
