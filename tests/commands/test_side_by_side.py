"""A prompt's completions, strengths side by side."""

import io
import re

import pytest

from dera_jax import read_rows
from dera_jax.commands import generate
from dera_jax.commands.parts.side_by_side import side_by_side
from dera_jax.decoding import pieces, prefix_cache
from dera_jax.results.rows import sort_rows
from tests.support.command_runs import TEXTS


def test_generate_shows_strengths_side_by_side(call, models, finished):
    words = [*models, f"--prompt={TEXTS[0]}", "--max-new-tokens=24", "--rows=4", "--lambda=0,0.5,1"]
    code, out, err = call(generate.main, *words)
    assert code == 0 and err.startswith("devices: ")
    lines = out.splitlines()
    assert lines[0] == f"prompt: {TEXTS[0]}" and max(map(len, lines)) <= 100
    titles, rule, *body = lines[2:]
    assert [title.strip() for title in titles.split("│")] == ["λ = 0", "λ = 0.5", "λ = 1"]
    assert set(rule) == {"─", "│", " "}
    columns = zip(
        *[[cell.strip() for cell in line.ljust(100).split("│")] for line in body if line], strict=True
    )
    texts = [" ".join(cell for cell in column if cell) for column in columns]
    rows = [row for row in sort_rows(read_rows(finished)) if row["prompt_id"] == 0]
    cut = {"length": "cut off at ", "eos": ""}
    expected = [
        f"{row['completion']} [{cut[row['finish_reason']]}{row['length']} tokens, "
        f"KL {row['kl_to_reference']:.2f} nats]"
        for row in rows
    ]
    assert [text.split() for text in texts] == [text.split() for text in expected]


@pytest.mark.parametrize("width, across", [(200, 4), (100, 3), (60, 2), (28, 1), (10, 1)])
def test_columns_fit_the_terminal(width, across):
    texts = {f"λ = {i}": " ".join(f"word{i}{j}" for j in range(30)) + "\nEnd.\x1b[2J" for i in range(4)}
    shown = side_by_side(texts, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "\x1b" not in shown
    assert shown.splitlines()[0].count("│") == across - 1
    found = re.findall(r"λ = \d|word\d+|End", shown)
    assert sorted(found) == sorted(re.findall(r"λ = \d|word\d+|End", " ".join([*texts, *texts.values()])))


def test_generate_shows_every_sample(call, models):
    words = [*models, "--prompt=Tom saw", "--max-new-tokens=24", "--rows=4", "--lambda=1", "--num-samples=3"]
    code, out, _ = call(generate.main, *words)
    assert code == 0 and out.count("λ = 1") == 3


def test_lines_of_standard_input_are_answered_at_strengths_that_change(call, monkeypatch):
    lines = "Mira visits Ida\n\n/lambda 0.7\nTom\n/lambda strong\n/speed\n/lambda 0,1/2\nTom\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = call(generate.main, "--interactive", "--max-new-tokens=4", "--lambda=0,1")
    assert code == 0
    titles = [line for line in out.splitlines() if line.startswith("λ")]
    assert [re.findall(r"λ = ([\d.]+)", line) for line in titles] == [["0", "1"], ["0.7"], ["0", "0.5"]]
    assert len(re.findall(r"tokens, KL \d+\.\d\d nats\]", out)) == 5
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 2 and "found 'strong'" in told[0]
    assert told[1] == "error: unknown command '/speed'; expected /lambda STRENGTHS or /quit"


def test_what_lines_begin_with_is_read_once(call, monkeypatch):
    """One cache serves all lines, and says no other text."""
    lines = (
        "".join(f"{'Mira visits Ida. ' * 20}{end}\n" for end in ("Tom ran home", "Ida sat", "Lily saw a cat"))
        + "/quit\n"
    )
    read, piece = [], pieces.read_piece
    stores, make = [], prefix_cache.PrefixCache.__init__
    monkeypatch.setattr(pieces, "read_piece", lambda *args, **more: read.append(args) or piece(*args, **more))
    monkeypatch.setattr(
        prefix_cache.PrefixCache, "__init__", lambda self, **how: stores.append(self) or make(self, **how)
    )

    def said(*words):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code, out, err = call(generate.main, "--interactive", "--max-new-tokens=4", "--lambda=0,1", *words)
        assert code == 0, err
        return out

    with_cache, counted = said(), len(read)
    assert counted == 2 * 2 and len(stores) == 1  # both models, all lines but the first
    assert said("--prefix-cache=off") == with_cache
    assert (len(read), len(stores)) == (counted, 1)


def test_a_prefix_cache_is_on_or_off(call):
    code, _, err = call(generate.main, "--prefix-cache=maybe")
    assert code == 2 and "--prefix-cache" in err.splitlines()[-1] and "maybe" in err.splitlines()[-1]
