"""A prompt's completions, strengths side by side."""

import re

import pytest

from dera_jax import read_rows
from dera_jax.commands import generate
from dera_jax.results import sort_rows
from tests.command_runs import TEXTS


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
    expected = [row["completion"] for row in sort_rows(read_rows(finished)) if row["prompt_id"] == 0]
    assert [text.split() for text in texts] == [text.split() for text in expected]


@pytest.mark.parametrize("width, across", [(200, 4), (100, 3), (60, 2), (28, 1), (10, 1)])
def test_columns_fit_the_terminal(width, across):
    texts = {f"λ = {i}": " ".join(f"word{i}{j}" for j in range(30)) + "\nEnd.\x1b[2J" for i in range(4)}
    shown = generate.side_by_side(texts, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "\x1b" not in shown
    assert shown.splitlines()[0].count("│") == across - 1
    found = re.findall(r"λ = \d|word\d+|End", shown)
    assert sorted(found) == sorted(re.findall(r"λ = \d|word\d+|End", " ".join([*texts, *texts.values()])))


def test_generate_shows_every_sample(call, models):
    words = [*models, "--prompt=Tom saw", "--max-new-tokens=24", "--rows=4", "--lambda=1", "--num-samples=3"]
    code, out, _ = call(generate.main, *words)
    assert code == 0 and out.count("λ = 1") == 3
