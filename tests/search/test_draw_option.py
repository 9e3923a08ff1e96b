"""--draw as users write it, rightly and wrongly."""

import pytest

from dera_jax import read_rows
from dera_jax.commands import generate, plot, sweep

FORMS = "best-of:N:SCORE, best-of-poisson:MU:SCORE, soft-best-of:N:BETA:SCORE"
MU = "MU: expected a number above 0 and at most 1000, got"
BAD = {
    "mixtur": f"unknown draw 'mixtur'; known: mixture, {FORMS}",
    "best-of": "expected best-of:N:SCORE, found 'best-of'; SCORE is one of length:MIN:MAX",
    "best-of:8": "expected best-of:N:SCORE, found 'best-of:8'",
    "best-of::slots": "expected best-of:N:SCORE",
    "best-of:8:": "expected best-of:N:SCORE",
    "soft-best-of:8:slots": "expected soft-best-of:N:BETA:SCORE",
    "best-of:8:polite": "unknown score 'polite'; known: length:MIN:MAX[:STOP], lexicon:FILE, keywords:a|b, ",
    "best-of:8:python:json:gone": "has no function gone",
    "best-of:8:length:9": "expected length:MIN:MAX",
    "best-of:8:log-ratio*x": "expected SCORE*WEIGHT with a finite number as WEIGHT, found 'log-ratio*x'",
    "best-of:0:log-ratio": "N: expected a whole number, at least 1, got 0",
    "best-of:-3:log-ratio": "N: expected a whole number, at least 1, got -3",
    "best-of:2.5:log-ratio": "N: expected a whole number, at least 1, got '2.5'",
    "best-of:5000:log-ratio": "N: expected a whole number, at most 4096, got 5000",
    "best-of-poisson:0:log-ratio": f"{MU} 0",
    "best-of-poisson:-1:log-ratio": f"{MU} -1",
    "best-of-poisson:1e9:log-ratio": f"{MU} 1000000000.0",
    "best-of-poisson:nan:log-ratio": f"{MU} nan",
    "best-of-poisson:few:log-ratio": "MU: expected a number above 0, got 'few'",
    "soft-best-of:2:0:log-ratio": "BETA: expected a number above 0, got 0",
    "soft-best-of:2:-1:log-ratio": "BETA: expected a number above 0, got -1",
    "soft-best-of:2:inf:log-ratio": "BETA: expected a number above 0, got inf",
    "blocks:8:log-ratio": "expected blocks:K:M:SCORE, found 'blocks:8:log-ratio'",
    "blocks:0:4:log-ratio": "K: expected a whole number, at least 1, got 0",
    "blocks:4:0:log-ratio": "M: expected a whole number, at least 1, got 0",
    "blocks:4:x:log-ratio": "M: expected a whole number, at least 1, got 'x'",
    "beams:0:4:4:log-ratio": "B: expected a whole number, at least 1, got 0",
    "beams:64:65:4:log-ratio": "B·K: expected at most 4096 candidates at a time, got 4160",
    "soft-blocks:4:4:0:log-ratio": "BETA: expected a number above 0, got 0",
    "rejection:4:4:1:log-ratio": "SHARE: expected a number between 0 and 1, got 1.0",
    "rejection:4:4:x:log-ratio": "SHARE: expected a number between 0 and 1, got 'x'",
    "lookahead:4:-1:1:log-ratio": "L: expected a whole number, at least 0, got -1",
    "lookahead:4:3:5:log-ratio": "M: expected at most L + 1 = 4 tokens, which a roll-out has, got 5",
    "lookahead:0:3:1:log-ratio": "K: expected a whole number, at least 1, got 0",
    "lookahead-beams:2:4:3:log-ratio": "expected lookahead-beams:B:K:L:M:SCORE",
    "blocks:4:4:value:gone": "gone: no such folder",
    "soft-best-of:0:1:log-ratio": "N: expected a whole number, at least 1, got 0",
}


@pytest.mark.parametrize("draw", BAD)
@pytest.mark.parametrize("command", [sweep, generate], ids=["sweep", "generate"])
def test_a_bad_draw_is_one_line(call, tmp_path, monkeypatch, command, draw):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(command.main, f"--draw={draw}")
    assert (code, out) == (2, "") and err.startswith("error: --draw: ") and err.count("\n") == 1
    assert BAD[draw] in err
    assert not list(tmp_path.iterdir())


def test_the_log_ratio_needs_one_aligned_model(refused, models):
    words = [
        models[0],
        f"{models[1]},{models[1].partition('=')[2]}",
        "--lambda=0.5+0.5",
        "--draw=best-of:2:log-ratio",
    ]
    assert "--draw: log-ratio: expected one aligned model, found 2" in refused(sweep.main, *words)


def test_the_terminal_shows_what_was_chosen(call):
    draw = "--draw=best-of:4:length:10:20*2+log-ratio"
    code, out, _ = call(generate.main, "--lambda=0.5", "--max-new-tokens=24", draw)
    assert code == 0 and "chosen from 4: score" in " ".join(out.split())


@pytest.mark.parametrize("draft", ["none", "ngram"])
def test_a_plan_counts_candidates(call, tmp_path, draft):
    words = ["--dry-run", "--num-prompts=2", "--lambda=0,1", f"--out={tmp_path / 'run'}", f"--draft={draft}"]
    code, out, _ = call(sweep.main, *words, "--draw=best-of:4:log-ratio")
    assert code == 0 and "16 rows at a time" in out and "(2048 tokens)" in out


def test_a_search_has_rows_for_its_candidates(refused):
    words = ["--draw=blocks:8:4:log-ratio", "--lambda=0.5", "--num-prompts=1"]
    assert "rows: expected at least 8, the candidates of one completion, got 4" in refused(
        sweep.main, *words, "--rows=4"
    )


def test_a_search_drafts_nothing(refused):
    told = refused(sweep.main, "--draw=blocks:8:4:log-ratio", "--draft=ngram", "--lambda=0.5")
    assert "--draw: blocks: expected no drafts, found --draft=ngram" in told


def test_what_was_looked_at_is_kept_and_drawn(call, tmp_path, refused):
    run = tmp_path / "run"
    words = ["--lambda=0.5,1", "--num-prompts=2", "--max-new-tokens=12", f"--out={run}"]
    draw = "--draw=lookahead-beams:2:2:4:3:keywords:river*5"
    assert "--trace: expected a --draw that chooses" in refused(sweep.main, *words, "--trace")
    assert call(sweep.main, *words, draw, "--trace")[0] == 0
    for row in read_rows(run):
        trace = row["search"]["trace"]
        assert sum(map(len, trace)) >= row["search"]["candidates"] > 0
        for number, candidates in enumerate(trace):
            assert 1 <= sum(each["kept"] for each in candidates) <= 2
            before = trace[number - 1] if number else []
            assert all(
                each["parent"] is None if not number else before[each["parent"]]["kept"]
                for each in candidates
            )
        # The kept path spells the completion.
        best = max((each for each in trace[-1] if each["kept"]), key=lambda each: each["score"])
        assert row["search"]["score"] == best["score"] and best["ended"]
    code, _, _ = call(plot.main, str(run), "--trace")
    assert code == 0 and (run / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert "--trace=nobody: no rows of this prompt; there are toy-000" in refused(
        plot.main, str(run), "--trace=nobody"
    )
    plain = tmp_path / "plain"
    assert call(sweep.main, "--lambda=1", "--num-prompts=1", "--max-new-tokens=8", f"--out={plain}")[0] == 0
    assert "expected rows with what a search looked at, found none" in refused(
        plot.main, str(plain), "--trace"
    )
