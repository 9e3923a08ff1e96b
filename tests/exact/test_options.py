"""--draw=exact and particles:N as users write them, rightly and wrongly."""

import pytest

from dera_jax import read_rows
from dera_jax.commands import generate, sweep

BAD = {
    ("--draw=exact:2",): "--draw: expected exact, found 'exact:2'",
    ("--draw=particles",): "--draw: expected particles:N, found 'particles'",
    ("--draw=particles:x",): "--draw: N: expected a whole number, at least 2, got 'x'",
    ("--draw=particles:1",): "--draw: N: expected a whole number, at least 2, got 1",
    ("--draw=particles:5000",): "--draw: N: expected a whole number, at most 4096, got 5000",
    ("--draw=exact", "--max-tries=0"): "--max-tries: expected a whole number, at least 1, got 0",
    ("--draw=particles:4", "--max-tries=5"): "--max-tries: expected --draw=exact, found particles:4",
    ("--limit-means=absorb",): "--limit-means: expected --draw=exact, particles:N or metropolis:N, found mixture",
    ("--draw=best-of:2:logprob", "--max-tries=5"): "--max-tries: expected --draw=exact, particles:N or metro",
    ("--draw=exact", "--lambda=0.5,1.5"): "exact: expected 0 ≤ λ ≤ 1, where Π z ≤ 1, found 1.5; particles:N takes",
    ("--draw=exact", "--temperature=0.5"): "which temperature would change; expected temperature 1, found 0.5",
    ("--draw=exact", "--draft=reference"): "--draw: exact: expected no drafts, found --draft=reference",
    ("--draw=particles:8", "--rows=4"): "rows: expected at least 8, the candidates of one completion, got 4",
    ("--draw=particles:4", "--top-p=0.5"): "particles: draws from π_ref^(1−λ) π_al^λ, which top_p would change",
}  # fmt: skip


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_what_is_wrong_is_one_line(call, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    given = words if any("--lambda" in word for word in words) else ("--lambda=0.5", *words)
    code, out, err = call(sweep.main, *given)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and BAD[words] in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("draw", ["exact", "particles:4", "metropolis:3"])
def test_a_sweep_keeps_and_tells_how_completions_were_found(call, tmp_path, draw):
    words = ["--lambda=0,0.5", "--num-prompts=3", "--max-new-tokens=24", f"--out={tmp_path / 'run'}"]
    code, out, _ = call(sweep.main, *words, f"--draw={draw}", "--limit-means=absorb")
    assert code == 0 and "λ = 0.5: " in out and "ran into the limit" in out
    assert ("log Z" in out) == (not draw.startswith("metropolis"))
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 6 and {row["draw"] for row in rows} == {f"{draw}:absorb"}
    for row in rows:
        found = row["exact"]
        assert found["tokens"] >= len(row["tokens"])
        assert (found.get("log_weight") is not None) == draw.startswith("particles")
        assert draw.startswith("metropolis") or (found["cut"] > 0) >= (row["finish_reason"] == "length")
        if row["lambda"] == 0 and draw == "exact":
            assert found["tries"] == 1
    if draw == "exact":
        assert (
            "3 of 3 tries accepted (100%)" in out
            and "log Z needs a prompt with two accepted completions" in out
        )
    # The same once more, and another meaning of the limit is another run.
    assert call(sweep.main, *words, f"--draw={draw}", "--limit-means=absorb")[0] == 0
    assert read_rows(tmp_path / "run") == rows
    assert call(sweep.main, *words, f"--draw={draw}")[0] == 2


def test_one_completion_in_the_terminal(call):
    words = ["--lambda=0.5", "--max-new-tokens=16", "--draw=exact", "--limit-means=absorb"]
    code, out, _ = call(generate.main, *words)
    assert code == 0 and out
