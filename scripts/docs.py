"""Writes docs/reference/commands.md from the parsers of the commands, and rules.md from the table of rules.

python -m scripts.docs
"""

import argparse
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from dera_jax import commands
from dera_jax.commands import (  # noqa: F401
    audit,
    bench,
    combine,
    compare,
    curve,
    dpo,
    generate,
    lm_eval,
    optimum,
    plan,
    plot,
    reward,
    rlhf,
    score,
    serve,
    sft,
    steer,
    sweep,
    tune,
    value,
    weigh,
)
from dera_jax.commands.options.cli import Parser
from dera_jax.common.spelling import COMMANDS
from dera_jax.rewards.registry import HELP
from dera_jax.rules.catalogue import KINDS, KNOWN, Dial, Entry

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/commands.md"
RULES = ROOT / "docs/reference/rules.md"

INTRODUCTION = """\
<!-- Written by scripts/docs.py from the parsers of the commands: change their help, then run the script. -->

# Commands

Every command is a module of a checkout, `python -m eval.sweep`. After `pip install .` it is `dera sweep`, with the
same options. `--help` prints what this page lists, and `--version` prints the version.

How strengths, prompts, rewards and training data are written is explained in [Inputs](inputs.md).
"""


def parser_of(name: str) -> Parser:
    """Returns the parser of a command, without the options that lm-eval adds to `eval.lm_eval`."""
    return getattr(commands, name).make_parser()


def page() -> str:
    """Returns the page of all commands."""
    parsers = {name: parser_of(name) for name in COMMANDS}
    sections = [_section(name, parser) for name, parser in parsers.items()]
    rows = [
        f"| [`{_full(name)}`](#{_anchor(name)}) | {_first(p.description)} |" for name, p in parsers.items()
    ]
    table = "\n".join(["| command | what it does |", "|---|---|", *rows])
    return "\n".join([INTRODUCTION, table, "", *sections]).rstrip() + "\n"


def _full(name: str) -> str:
    return f"{COMMANDS[name]}.{name}"


def _anchor(name: str) -> str:
    return _full(name).replace(".", "")


def _first(text: str) -> str:
    """Returns the first paragraph of a description, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split()).replace("|", "\\|")


def _section(name: str, parser: Parser) -> str:
    parts = [f"## {_full(name)}\n", *_described(parser.description)]
    if parser.epilog and name != "lm_eval":  # which says there whether lm-eval is installed
        parts.append(" ".join(parser.epilog.split()) + "\n")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not _is_everywhere(action)]
        if actions:
            parts += [f"**{_title(group.title)}**\n", *map(_option, actions), ""]
    return "\n".join(parts)


def _described(text: str) -> Iterator[str]:
    """Yields a description as Markdown: paragraphs, and what is aligned by spaces as it stands."""
    for part in text.strip("\n").split("\n\n"):
        if "  " in part:
            yield f"```text\n{textwrap.dedent(part)}\n```\n"
        else:
            yield _shown(" ".join(part.split())) + "\n"


def _title(title: str) -> str:
    return {"positional arguments": "Arguments", "options": "Options"}.get(
        title, title[:1].upper() + title[1:]
    )


def _is_everywhere(action: argparse.Action) -> bool:
    return action.dest in ("help", "version")


def _choices(action: argparse.Action) -> str:
    return f"{{{','.join(map(str, action.choices))}}}" if action.choices else ""


def _option(action: argparse.Action) -> str:
    """Returns the line of an option in a list."""
    taken = None if action.nargs == 0 else action.metavar or _choices(action) or action.dest.upper()
    if action.nargs == "?" and action.option_strings:
        taken = f"[{taken}]"
    names = [" ".join(filter(None, (name, taken))) for name in action.option_strings or [""]]
    told = (action.help or "") % {**vars(action), "prog": ""} if action.help else ""
    # What rewards are is a list of its own.
    told = told.replace(HELP, "a reward or several, see [Rewards](inputs.md#rewards)")
    named = ", ".join(f"`{name.strip()}`" for name in names)
    return f"- {named}: {_shown(told)}" if told else f"- {named}"


_CODE = re.compile(r"`[^`]*`|(?<![\w-])--[a-z][\w-]*(?:=[^\s,;:)]*\w)?")


def _shown(text: str) -> str:
    """Returns plain text as Markdown that shows it as it is: options, and what stands in backticks, as code."""
    pieces, end = [], 0
    for code in _CODE.finditer(text):
        pieces += [_escaped(text[end : code.start()]), code[0] if code[0][0] == "`" else f"`{code[0]}`"]
        end = code.end()
    return "".join([*pieces, _escaped(text[end:])])


def _escaped(text: str) -> str:
    if "](" in text:
        return text
    text = re.sub(r"<(?=[^\s=])", "&lt;", text)
    return re.sub(r"([\\*\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


ABOUT_RULES = """\
<!-- Written by scripts/docs.py from dera_jax/rules/catalogue.py: change that, then run the script. -->

# Rules

What `--rule` takes, and `rule=` in Python: `NAME` or `NAME:key=value,…`. `--rule=list` prints these tables.
Several rules are joined by `+`: first those that change the strength, then one that combines logits (without one:
`linear`), then those that take words out. For example, `--rule=kl-budget:nats=0.05+plausible` spends at most 0.05
nats on a token before it takes out what the aligned model finds implausible. `hₘ` are logits and `πₘ` probabilities of
model m, the reference is the first, and `λ` the strength (`--lambda`). [Decoding rules](../guides/decoding-rules.md)
shows how they are used and how to write your own.
"""


def rules_page() -> str:
    """Returns the page of all rules."""
    sections = []
    for kind, does in KINDS.items():
        rows = [_rule(name, entry) for name, entry in KNOWN.items() if entry.kind == kind]
        head = ["| rule | formula | when to use it | source |", "|---|---|---|---|"]
        sections.append("\n".join([f"## {does[0].upper()}{does[1:]}\n", *head, *rows, ""]))
    return "\n".join([ABOUT_RULES, *sections]).rstrip() + "\n"


def _rule(name: str, entry: Entry) -> str:
    written = name + (":" + ",".join(f"{d.name}={_default(d)}" for d in entry.dials) if entry.dials else "")
    dials = [f"`{d.name}`: {d.meaning}, {d.least:g} to {d.most:g}" for d in entry.dials]
    cells = (
        f"`{written}`" + "".join(f"<br>{told}" for told in dials),
        entry.formula,
        entry.use,
        entry.source,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(dial: Dial) -> str:
    return "…" if math.isinf(dial.default) else f"{dial.default:g}"


def main() -> int:
    """Writes the pages; returns the exit code."""
    for place, text in ((PAGE, page()), (RULES, rules_page())):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        print(place.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
