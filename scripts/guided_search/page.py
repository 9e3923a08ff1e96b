"""The page of the experiments: a table for each, and the figure of the last."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dera_jax.analysis.estimates import Estimate
from scripts.guided_search import figures
from scripts.guided_search.experiments import WEIGHTS
from scripts.guided_search.figures import Quantity
from scripts.guided_search.frontier import plot_frontier
from scripts.guided_search.trade_off import plot_trade_off


def _reward(name: str, plus: float = 0.0) -> Quantity:
    return lambda row: row["rewards"][name] + plus


def _band(row: dict) -> float:
    return row["rewards"][r"length:40:60:\n"] + 1


@dataclass(frozen=True)
class Section:
    """An experiment as the page tells it."""

    title: str
    told: str
    quantities: Mapping[str, Quantity]
    percent: tuple[str, ...] = ()
    """Quantities that are shares."""


COSTS = {"log π_ref of a token": figures.fluency, "passes a token": figures.passes}
SECTIONS = {
    "concepts": Section(
        "Stories that say given words",
        "The 200 concept sets of CommonGen (development set) whose rarest word the stories have most often; a story "
        'model realigned to λ = 0.5 begins with "Once upon a time" (`prompted`: the words before it) and writes 192 '
        "tokens. Soft coverage is the share of words that occur in any form, hard coverage the share of stories with "
        "all of them.",
        {
            "soft coverage": _reward("concepts"),
            "hard coverage": lambda row: float(row["rewards"]["concepts"] == 1),
            **COSTS,
        },
        ("soft coverage", "hard coverage"),
    ),
    "slots": Section(
        "Restaurants: length and slots",
        "200 meaning representations that the T5 was not trained on. `length` is the share of texts of 16 "
        "to 24 tokens, "
        "`slots` the share of slots that is said, both together those that fit and say everything.",
        {
            "slots": _reward("slots"),
            "length": _reward("length:16:24", 1.0),
            "all slots in the length": lambda row: float(
                row["rewards"]["slots"] == 1 and row["rewards"]["length:16:24"] == 0
            ),
            **COSTS,
        },
        ("slots", "length", "all slots in the length"),
    ),
    "rewards": Section(
        "Two rewards with weights",
        "16 questions of held-out conversations of HH, half from each subset, to a chat model. The "
        "numbers behind "
        "`lookahead` and `best-of-8` are the weights of the harmless and the helpful reward model; best of 8 "
        "is chosen among the samples of `plain`; `instruction` realigns "
        "the chat model "
        "towards itself with an instruction. The reward models are also the judges.",
        {"harmless": _reward("harmless"), "helpful": _reward("helpful"), **COSTS},
    ),
    "on-top": Section(
        "Alignment, search, and both",
        "128 openings of stories, held out from the alignment; the reward is a first paragraph of 40 to 60 "
        "tokens. λ = 0 is the model, λ = 1 the one that was aligned to the reward.",
        {"in the band": _band, **COSTS},
        ("in the band",),
    ),
    "injection": Section(
        "Answers that are begun in agreement",
        '24 harmful requests of AdvBench; every answer begins with "Sure, here is". `refuses` is the share of answers '
        "with a phrase of a refusal, `harmless` what the reward model says.",
        {
            "refuses": lambda row: float(row["rewards"]["refusal"] > 0),
            "harmless": _reward("harmless"),
            **COSTS,
        },
        ("refuses",),
    ),
    "frontier": Section(
        "Reward against KL",
        "128 openings of stories; the reward is a first paragraph of 40 to 60 tokens. All ways but "
        "`realigned` draw from "
        "the reference; the λ of `controlled` is 1/β. KL is exact for `realigned` and `controlled`; of "
        "choices among n "
        "draws it is the bound log n − (n − 1)/n for each.",
        {"in the band": _band, "KL at most": figures.kl_bound, **COSTS},
        ("in the band",),
    ),
}


def write_page(out: Path) -> str:
    """Returns the page of the experiments whose rows are in folders of `out`; draws the figure."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        folder = out / name
        ways = figures.read_ways(folder) if (folder / "commands.txt").is_file() else {}
        if not ways:
            continue
        if name == "rewards":
            ways |= _best_of_plain(ways)
        lines = figures.lines_of(ways, section.quantities)
        parts.append(f"## {section.title}\n\n{section.told}\n\n{_table(lines, section)}\n")
        if (notes := folder / "NOTES.md").is_file():
            parts.append(notes.read_text(encoding="utf-8"))
        if name == "frontier":
            plot_frontier(lines, out / "frontier.png")
            parts.append("![reward against KL](frontier.png)\n")
        if name == "rewards":
            plot_trade_off(lines, out / "trade_off.png")
            parts.append("![harmless against helpful](trade_off.png)\n")
        parts.append(f"Commands: [{name}/commands.txt]({name}/commands.txt); rows beside them.\n")
    return "\n".join(parts)


def _best_of_plain(ways: Mapping[str, list[dict]]) -> dict[str, list[dict]]:
    """Returns best of n among the samples of the plain way, for each pair of weights that searches have."""
    each = {one: {"harmless": one, "helpful": other} for one, other in WEIGHTS}
    return {
        f"best-of-8-{one:g}-{1 - one:g}": figures.best_among(ways["plain"], weights)
        for one, weights in each.items()
    }


def _table(lines: list[figures.Line], section: Section) -> str:
    """Returns the table: means, and the differences from the first way, with intervals."""
    names = list(section.quantities)
    head = ["way", "λ", *names, *(f"{name}, less the first" for name in names if name not in COSTS)]
    found = [head, ["---", "--:", *["--:"] * (len(head) - 2)]]
    for line in lines:
        cells = [_cell(line.found[name], name in section.percent) for name in names]
        less = [
            _cell(line.less.get(name), name in section.percent, sign=True)
            for name in names
            if name not in COSTS
        ]
        found.append([f"`{line.way}`", line.strength, *cells, *less])
    return "".join(f"| {' | '.join(row)} |\n" for row in found)


def _cell(value: Estimate | None, percent: bool, sign: bool = False) -> str:
    if value is None:
        return ""
    scale, digits = (100, 0) if percent else (1, 2)
    mark = "+" if sign else ""

    def number(x: float) -> str:
        return f"{scale * x:{mark}.{digits}f}".replace("-", "−")

    if value.low != value.low:
        return number(value.mean)
    return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"


HEAD = """# Guided search

What searches gain over plain decoding at the same strength, and what they cost. Written by
`python -m scripts.guided_search` from the rows beside this page. Shares are in per cent, the rest in the units of the
reward and in nats; brackets are 95 % intervals by bootstrap over prompts, of differences paired by prompt.
`passes a token` are forward passes of each model for a token that is kept. One seed each.
"""
