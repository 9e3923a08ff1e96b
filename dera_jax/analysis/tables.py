"""Summaries to a table: for the terminal, Markdown or LaTeX."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dera_jax.analysis.estimates import Estimate
from dera_jax.analysis.summaries import Summary, turns_of
from dera_jax.common.shown import shown
from dera_jax.strengths import format_strength

WIDTH = 100
"""Columns of a terminal. A wider table is broken into several, each with λ."""
NAME_WIDTH = 20
"""Columns of a reward's name in a terminal."""
LEGEND = "larger λ = smaller β = weaker regularization"
LEGEND_OF_SEVERAL = "λ: weight of each aligned model, the reference has the rest"
"""Of strengths that are vectors, which stand for no single β."""
NO_BETA = "β/λ is —: which β the aligned model was trained with is not known; eval.sweep --beta=B adds it"
INTERVALS = "± is half a 95 % interval over prompts"
BAR = "\\|"
UNSAFE = r"[^\w .:/-]|_"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{symbol: "\\" + symbol for symbol in "{}$&#_%"},
}


def format_table(summaries: Sequence[Summary], style: str = "terminal") -> str:
    """Returns a table with a row per strength, without a newline at its end.

    Args:
      summaries: at least one; see `summarize`.
      style: terminal (aligned, at most 100 columns wide), markdown or latex (booktabs).

    Raises:
      ValueError: there are no summaries, or the style is none of these.
    """
    if not summaries:
        raise ValueError("there are no rows to show")
    table = format_columns(_columns(summaries), style)
    return f"{table}\n\n{_legend(summaries, table)}" if style == "terminal" else table


def _legend(summaries: Sequence[Summary], table: str) -> str:
    several = any(len(summary.lambda_) > 1 for summary in summaries)
    legend = LEGEND_OF_SEVERAL if several else LEGEND
    known = several or any(summary.beta is not None for summary in summaries)
    lines = [f"{legend}; {INTERVALS}" if "±" in table else legend, *([] if known else [NO_BETA])]
    return "\n".join(lines)


def short_names(names: Sequence[str], width: int = NAME_WIDTH) -> dict[str, str]:
    """Returns each name, cut to its end where it is longer than `width` and still told from the others.

    >>> short_names(["length:40:60", "python:my_rewards:politeness"])
    {'length:40:60': 'length:40:60', 'python:my_rewards:politeness': '…politeness'}
    """
    short = {name: _cut(shown(name), width) for name in names}
    return short if len(set(short.values())) == len(short) else {name: shown(name) for name in names}


def _cut(name: str, width: int) -> str:
    """Returns the longest end of a name that fits and begins after `:` or `/`, or else anywhere."""
    if len(name) <= width:
        return name
    ends = [name[m.end() :] for m in re.finditer("[:/]", name)]
    return next(("…" + end for end in ends if 0 < len(end) < width), "…" + name[1 - width :])


@dataclass(frozen=True)
class Column:
    """A table's column, its cells already texts."""

    heading: str
    cells: list[str]
    is_reward: bool = False
    """Whether the heading is a reward's name."""


def format_columns(columns: Sequence[Column], style: str = "terminal") -> str:
    """Returns the table of `columns`, the first repeated where it is broken; `style` as in `format_table`."""
    styles = {"terminal": _terminal, "markdown": _markdown, "latex": _latex}
    if style not in styles:
        raise ValueError(f"--table: expected {', '.join(styles)}, found {style!r}")
    return styles[style](columns)


def _columns(summaries: Sequence[Summary]) -> list[Column]:
    """Returns the columns, the strengths first."""
    names = dict.fromkeys(name for summary in summaries for name in summary.rewards)
    rewards = []
    for name in names:
        found = {name: [summary.rewards.get(name) for summary in summaries]}
        for turn in turns_of(summaries, name):
            by_turn = [summary.turn_rewards.get(name, {}).get(turn) for summary in summaries]
            found[f"{name}, turn {turn + 1}"] = by_turn
        rewards += [Column(heading, estimate_cells(each), is_reward=True) for heading, each in found.items()]
    return [
        Column("λ", strength_cells([summary.lambda_ for summary in summaries])),
        Column("β/λ", [_number(summary.beta_effective) for summary in summaries]),
        *rewards,
        Column("KL (nats)", estimate_cells([summary.kl_to_reference for summary in summaries])),
        Column("length (tokens)", estimate_cells([summary.length for summary in summaries])),
        Column("ended", [f"{100 * summary.ended:.0f} %" for summary in summaries]),
    ]


def strength_cells(strengths: Sequence[tuple[float, ...]]) -> list[str]:
    """Returns strengths in four digits, in all of theirs if some could not be told apart."""
    short = ["+".join(f"{value:.4g}" for value in strength) for strength in strengths]
    return short if len(set(short)) == len(short) else [format_strength(strength) for strength in strengths]


def _number(value: float | None) -> str:
    """Returns three digits of a positive number, or what stands for it."""
    if value is None:
        return "—"
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def estimate_cells(estimates: Sequence[Estimate | None]) -> list[str]:
    """Returns `mean ± half-width`, in digits that show two of the widest, one more for narrow ones."""
    known = [estimate for estimate in estimates if estimate is not None]
    widths = [e.half_width for e in known if e.half_width > 0]
    if widths:
        digits = _digits(max(widths), 2)
        digits = min(max(digits, _digits(min(widths), 1)), digits + 1)
    else:
        digits = _digits(max((abs(e.mean) for e in known), default=0.0), 3)
    return ["—" if e is None else _estimate(e, digits) for e in estimates]


def _digits(value: float, significant: int) -> int:
    """Returns how many digits after the point show so many significant ones of `value`."""
    if value == 0:
        return significant
    return min(max(significant - 1 - math.floor(math.log10(value)), 0), 6)


def _estimate(estimate: Estimate, digits: int) -> str:
    mean = f"{estimate.mean:z.{digits}f}"
    return mean if math.isnan(estimate.half_width) else f"{mean} ± {estimate.half_width:.{digits}f}"


def _terminal(columns: Sequence[Column]) -> str:
    names = short_names([column.heading for column in columns if column.is_reward])
    strengths, *others = [
        [names.get(column.heading) or shown(column.heading), *map(shown, column.cells)] for column in columns
    ]
    blocks = [[strengths]]
    for cells in others:
        if sum(_width(c) + 2 for c in blocks[-1]) + _width(cells) > WIDTH:
            blocks.append([strengths])
        blocks[-1].append(cells)
    return "\n\n".join(map(_align, blocks))


def _width(cells: list[str]) -> int:
    return max(map(len, cells))


def _align(columns: list[list[str]]) -> str:
    """Returns right-aligned columns with a rule below the headings."""
    padded = [[cell.rjust(_width(cells)) for cell in cells] for cells in columns]
    heading, *lines = ["  ".join(line) for line in zip(*padded, strict=True)]
    rule = "  ".join("─" * _width(cells) for cells in columns)
    return "\n".join([heading, rule, *lines])


def _markdown(columns: Sequence[Column]) -> str:
    headings = [_code(column.heading) if column.is_reward else _escaped(column.heading) for column in columns]
    table = [headings, ["--:"] * len(columns)]
    table += zip(*(map(_escaped, column.cells) for column in columns), strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _code(name: str) -> str:
    """Returns a name as code in a Markdown table."""
    name = shown(name)
    if not re.search("[`<>&]", name):
        # A bar ends a cell even inside code.
        return f"`{name.replace('|', BAR)}`"
    # What could end the code, or be a tag then, is written by its number.
    return f"<code>{_by_number(name, UNSAFE)}</code>"


def _escaped(text: str) -> str:
    """Returns a text that is no Markdown or HTML but itself."""
    return _by_number(shown(text), r"[\\`*_\[\]<>|&]")


def _by_number(text: str, pattern: str) -> str:
    """Returns a text in which HTML's numbers stand for the characters that a pattern finds."""
    return re.sub(pattern, lambda found: f"&#{ord(found[0])};", text)


def _latex(columns: Sequence[Column]) -> str:
    headings = [_latex_heading(column) for column in columns]
    cells = zip(*(map(_latex_cell, column.cells) for column in columns), strict=True)
    heading, *lines = [" & ".join(line) + r" \\" for line in [headings, *cells]]
    begin = r"\begin{tabular}{" + "r" * len(columns) + "}"
    return "\n".join([begin, r"\toprule", heading, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"])


def _latex_heading(column: Column) -> str:
    text = "".join(_LATEX.get(symbol, symbol) for symbol in shown(column.heading))
    if column.is_reward:
        return rf"\texttt{{{text}}}"
    return text.replace("β/λ", r"$\beta/\lambda$").replace("λ", r"$\lambda$")


_FIGURES = re.compile(r"[-+.\deE ±%∞]+", re.ASCII)
"""What cells of numbers are made of."""


def _latex_cell(cell: str) -> str:
    if cell == "—":
        return "---"
    if not _FIGURES.fullmatch(cell):
        return "".join(_LATEX.get(symbol, symbol) for symbol in shown(cell))
    cell = cell.replace(" %", r"\,\%").replace("±", r"\pm").replace("∞", r"\infty")
    return f"${cell}$"
