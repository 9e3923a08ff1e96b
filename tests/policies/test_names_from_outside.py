"""Names that a run from somebody else brings: no terminal, spreadsheet, Markdown or LaTeX takes them for more."""

import csv
import json
import re

import pytest
from markdown_it import MarkdownIt

from dera_jax.analysis.plots import plot_sweep
from dera_jax.analysis.reports import describe_models, harmless, warnings_of, write_summary_csv
from dera_jax.analysis.summaries import summarize
from dera_jax.analysis.tables import Column, format_columns, format_table, short_names
from dera_jax.commands import plot, tune
from tests.support.grids import gridded, rows_of, write_rows
from tests.support.rows import row

NASTY = [
    "\x1b[2J\x1b]0;title\x07",
    "a`<img src=x onerror=alert(1)>`",
    "``<b>``",
    "<script>alert(1)</script>",
    "a|b\nc|d",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    r"\input{/etc/passwd}",
    "{}%&$#_^~",
    "\u202egnp.\ud800",
    "&lt;i&gt; &#60;",
    "*bold* _it_ [a](javascript:x)",
    "a" * 300,
    "",
]


def summaries_of(name):
    return summarize([row(p, 0, x, rewards={name: float(p)}) for p in range(3) for x in (0.0, 1.0)])


def is_safe(text):
    return not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)


@pytest.mark.parametrize("name", NASTY)
def test_a_terminal_shows_names_and_does_nothing(name):
    summaries = summaries_of(name)
    table = format_table(summaries)
    assert is_safe(table) and len(table.splitlines()) == len(format_table(summaries_of("a")).splitlines())
    assert is_safe(format_columns([Column("λ", ["0"]), Column(name, [name])]))
    assert all(
        map(is_safe, warnings_of(summaries_of(name) + summarize([row(0, 0, 2, rewards={name: None})])))
    )


@pytest.mark.parametrize("name", NASTY)
def test_markdown_has_the_name_in_one_cell_and_no_tag(name):
    page = format_table(summaries_of(name), "markdown")
    assert is_safe(page) and len(page.splitlines()) == 4
    heading = page.splitlines()[0]
    assert len(re.split(r"(?<!\\)\|", heading)) == 8  # six cells between bars
    html = MarkdownIt().enable("table").render(page)
    cells = re.findall("<th[^>]*>(.*?)</th>", html)
    assert len(cells) == 6
    assert re.fullmatch("<code>[^<>]*</code>|``", cells[2]), cells[2]
    assert (
        MarkdownIt().enable("table").render(format_columns([Column("a", [name])], "markdown")).count("<td")
        == 1
    )


@pytest.mark.parametrize("name", NASTY)
def test_latex_has_no_command_of_a_name(name):
    for page in (
        format_table(summaries_of(name), "latex"),
        format_columns([Column(name, [name]), Column("λ", ["0.5"])], "latex"),
    ):
        assert is_safe(page)
        known = {
            "begin",
            "end",
            "toprule",
            "midrule",
            "bottomrule",
            "lambda",
            "beta",
            "pm",
            "texttt",
            "infty",
        }
        known |= {"textbackslash", "textasciitilde", "textasciicircum"}
        assert set(re.findall(r"\\([A-Za-z]+)", page)) <= known
        assert page.replace(r"\{", "").count("{") == page.replace(r"\}", "").count("}")
        # What is special is so only where it is ours: no cell has more of it than the heading `a`.
        assert len(re.findall(r"(?<!\\)[%#~]", page)) == 0
        assert all(
            len(re.findall(r"(?<!\\)&", line)) in (1, 5) for line in page.splitlines() if line.endswith(r"\\")
        )


def test_a_csv_reads_back_and_holds_no_formula(tmp_path):
    for name in NASTY:
        write_summary_csv(tmp_path / "summary.csv", summaries_of(name))
        text = (tmp_path / "summary.csv").read_text()
        assert is_safe(text)
        heading, *lines = csv.reader(text.splitlines())
        assert len(lines) == 2 and all(len(line) == len(heading) for line in lines)
        for cell in [*heading, *lines[0], *lines[1]]:
            assert not cell.startswith(("=", "+", "@")) and (not cell.startswith("-") or float(cell) <= 0)
    for name in NASTY[5:11]:
        assert harmless(name).startswith("'")
    for number in ("-0.5", "+1e-3", "12", "-.5", "1e22"):
        assert harmless(number) == number
    assert harmless("-0.5+1") == "'-0.5+1"  # strengths of two aligned models, not their sum


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_commands_show_a_strangers_run(name, tmp_path, capsys):
    rows = rows_of(gridded({0: 0, 1: 1}, 24, samples=1))
    for each in rows:
        each["rewards"] = {name: each["rewards"]["gold"]}
    run = write_rows(tmp_path / "rows.jsonl", rows)
    manifest = {
        "format": 1,
        "identity": {"quantization": [None, name]},
        "provenance": {"models": [{"name": name}, {"name": name}]},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for words in (
        [],
        [f"--objective={name}"] if name else [],
        ["--objective=nope"],
        [f"--constraint={name}>=x"],
        ["--validation=0.01"],
    ):
        tune.main([str(run), *words, f"--plot={tmp_path / 'a.png'}"])
        told = capsys.readouterr()
        assert is_safe(told.out) and is_safe(told.err) and "Traceback" not in told.err
    plot.main([str(run)])
    assert is_safe(capsys.readouterr().err)
    assert is_safe(describe_models(tmp_path))


@pytest.mark.slow
def test_figures_take_any_name(tmp_path):
    for name in NASTY:
        plot_sweep({name: summaries_of(name)}, tmp_path / "a.png", name and describe_models(tmp_path))


def test_long_names_are_cut_where_a_part_begins():
    assert short_names(["lexicon:../shared/data/vader/vader_lexicon.txt", "python:myreward:exclaim"]) == {
        "lexicon:../shared/data/vader/vader_lexicon.txt": "…vader_lexicon.txt",
        "python:myreward:exclaim": "…myreward:exclaim",
    }


def test_an_unknown_beta_is_explained():
    rows = [row(p, 0, x, beta=None) for p in range(3) for x in (0.0, 1.0)]
    assert format_table(summarize(rows)).endswith("eval.sweep --beta=B adds it")
    assert "--beta" not in format_table(summarize([each | {"beta": 0.1} for each in rows]))
