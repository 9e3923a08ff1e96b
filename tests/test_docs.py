"""The documentation says what is so: its blocks run, its options are there, its tables are those of the code."""

import importlib
import re
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import dera_jax
from dera_jax.common.spelling import COMMANDS
from scripts import docs
from tests.support.house import TABLE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = re.compile(rf"^(?:python -m (?:eval|train)\.|dera )({'|'.join(COMMANDS)})$")
OTHERS = {
    # Of pip, pytest, mkdocs, and of programs in scripts/ and .ci/.
    "--index-url", "--compile", "--strict", "--smoke", "--list", "--print", "--from", "--may-skip",
}  # fmt: skip
"""Options in the text that are no command's."""
SLOW = {
    "README.md", "docs/guides/your-own-pair.md", "docs/guides/choosing-a-strength.md",
    "docs/guides/decoding-rules.md",
}  # fmt: skip
"""Pages whose blocks take long together; all of them are sweeps of the toy pair."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None
    """Why it is not run."""


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text(encoding="utf-8").split("\n")
    starts = iter(range(len(lines)))
    for start in starts:
        if not lines[start].startswith("```"):
            continue
        end = next(n for n in range(start + 1, len(lines)) if lines[n] == "```")
        language, _, rest = lines[start].removeprefix("```").partition(" ")
        title = re.search('title="(.*)"', rest)
        why = re.fullmatch(r"<!-- not run: (.+) -->", lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : end]) + "\n"
        found.append(Block(page, start + 1, language, title and title[1], text, why and why[1]))
        for _ in range(end - start):
            next(starts)
    return found


BLOCKS = {page: blocks(page) for page in PAGES}
RUN = {
    page: [block for block in found if block.language in ("sh", "python") and not block.not_run]
    for page, found in BLOCKS.items()
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> list[list[str]]:
    """Returns the words of each command of a shell block."""
    lines = text.replace("\\\n", " ").split("\n")
    return [shlex.split(part) for line in lines for part in line.split(" && ") if part.strip()]


def our_command(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns the name of a command of ours and the words behind it; None of another program."""
    for count in (3, 2):
        if called := OURS.match(" ".join(words[:count])):
            return called[1], words[count:]
    return None


@pytest.fixture
def undone():
    """What is to be done when the test has ended."""
    with ExitStack() as stack:
        yield stack


def parametrized(page: Path):
    slow = name(page) in SLOW
    return pytest.param(page, id=name(page), marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("page", [parametrized(page) for page in PAGES if RUN[page]])
def test_its_blocks_run(page, tmp_path, monkeypatch, undone):
    """In order, in an empty folder; a block with a title is a file, or lines at the end of one of the library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    undone.callback(forget_modules, {*sys.modules}, tmp_path)
    names = {"__name__": "page"}
    for block in RUN[page]:
        if block.language == "sh":
            run_commands(block)
        elif block.title is None:
            exec(compile(block.text, f"{name(page)}:{block.line}", "exec"), names)
        elif block.title.startswith("dera_jax/"):
            extend_library(block, undone)
        else:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")


def run_commands(block: Block) -> None:
    for words in commands(block.text):
        called = our_command(words)
        assert called, f"{name(block.page)}:{block.line}: only commands of ours are run, found {words}"
        command, options = called
        assert importlib.import_module(f"dera_jax.commands.{command}").main(options) == 0, words


def extend_library(block: Block, undone: ExitStack) -> None:
    """Adds the lines of a block to a module of the library, which may be new, until the test ends."""
    module_name = block.title.removesuffix(".py").replace("/", ".")
    if not (ROOT / block.title).exists():
        module = ModuleType(module_name)
        module.__file__ = str(Path(block.title).absolute())
        sys.modules[module_name] = module
        undone.callback(sys.modules.pop, module_name)
    module = importlib.import_module(module_name)
    undone.callback(restore, vars(module), dict(vars(module)))
    for value in vars(module).values():
        if isinstance(value, dict):  # such as KNOWN, which gets another entry
            undone.callback(restore, value, dict(value))
    path = Path(block.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    exec(compile(block.text, str(path.absolute()), "exec"), vars(module))


def restore(there: dict, before: dict) -> None:
    for key in there.keys() - before.keys():
        del there[key]


def forget_modules(before: set[str], folder: Path) -> None:
    """Takes out of the process what was imported from a folder."""
    for module in {*sys.modules} - before:
        if str(folder) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_not_run_says_why(page):
    """What is run is ours; other blocks of shell have a reason."""
    for block in BLOCKS[page]:
        assert block.language in ("sh", "python", "text", "bibtex"), (page, block.line)
        assert "python -m" not in block.text or block.language == "sh" or page == docs.PAGE, (
            page,
            block.line,
        )


@cache
def parser_of(command: str):
    parser = docs.parser_of(command)
    if command == "lm_eval":
        pytest.importorskip("lm_eval")
        importlib.import_module("dera_jax.commands.lm_eval").add_harness_options(parser)
    return parser


COMMAND_LINES = [
    pytest.param(*called, id=f"{name(page)}:{block.line}-{called[0]}")
    for page in PAGES
    for block in BLOCKS[page]
    if block.language == "sh"
    for words in commands(block.text)
    if (called := our_command(words))
]


@pytest.mark.parametrize(("command", "options"), COMMAND_LINES)
def test_a_command_takes_its_options(command, options):
    parser_of(command).parse_args(options)


SPAN = re.compile(r"`([^`\n]+)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page != docs.PAGE], ids=name)
def test_options_in_the_text_are_there(page):
    known = OTHERS.union(*(docs.parser_of(command)._option_string_actions for command in COMMANDS))
    text = re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for span in SPAN.findall(text):
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span):
            assert option in known, option


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """MkDocs checks those between pages and their headings; these are as GitHub follows them."""
    for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
        assert re.match("[a-z]+:", target) or (page.parent / target).exists(), target


def test_the_page_of_commands_is_what_their_parsers_say():
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run python -m scripts.docs"


def test_the_page_of_rules_is_what_their_table_says():
    assert docs.RULES.read_text(encoding="utf-8") == docs.rules_page(), "run python -m scripts.docs"


def test_the_table_of_imports_is_the_one_that_is_tested():
    page = ROOT / "docs/explanation/house.md"
    assert TABLE.strip() in [block.text.strip() for block in BLOCKS[page]]


def test_the_map_in_the_readme_has_every_package():
    (tree,) = (block.text for block in BLOCKS[ROOT / "README.md"] if block.text.startswith("dera_jax/"))
    told = [line.split()[0] for line in tree.split("\n") if line.startswith("  ")]
    there = [path for path in (ROOT / "dera_jax").iterdir() if not path.name.startswith("__")]
    assert sorted(told) == sorted(path.name + "/" * path.is_dir() for path in there)
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_page_of_python_has_every_public_name():
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    told = re.findall(r"^::: dera_jax\.(\S+)\.(\w+)$", page, flags=re.MULTILINE)
    assert dera_jax._PLACES.items() <= {(public, place) for place, public in told}
    for place, public in told:
        assert hasattr(importlib.import_module(f"dera_jax.{place}"), public)
