"""The schedule bench: both sides of a ratio make the same completions, and its report has what it promises."""

import json
import os
import sys

import pytest

from dera_jax import load_policies
from dera_jax.commands.bench import main
from dera_jax.common.spelling import COMMANDS
from dera_jax.decoding import device_loop, pieces
from dera_jax.decoding.room import CHUNK
from dera_jax.performance.bench import prefixes, sharing, sharing_lines, sides, starts, timing
from dera_jax.policies.save import save_policy
from tests.support import tiny

# So many that most completions are short.
TINY = tiny.TINY | {"eos_token_id": list(range(1, 9))}
SMALLER = {
    "LONG_PROMPT": 32,
    "SHORT_COMPLETION": 16,
    "LONG_ROWS": 2,
    "LONGEST": 64,
    "SKEWED_ROWS": 4,
    "SAMPLES": 8,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Options that name a tiny pair."""
    folder = tmp_path_factory.mktemp("models")
    policies = sides.random_policies(tmp_path_factory.mktemp("random"), TINY)
    for policy, name in zip(policies, ("reference", "aligned"), strict=True):
        save_policy(policy, folder / name)
    return [f"--{name}={folder / name}" for name in ("reference", "aligned")]


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory):
    """The report, what was printed, and the tokens of each call's cells by what was measured."""
    calls = []

    def keep(function):
        def kept(policies, cells, *more, **named):
            made = list(function(policies, cells, *more, **named))
            tokens = [getattr(one, "tokens", one) for one in made]
            cells = [getattr(one, "request", cell) for one, cell in zip(made, cells, strict=True)]
            calls.append({(c.prompt.id, c.sample, c.lambda_): t for c, t in zip(cells, tokens, strict=True)})
            return made

        return kept

    folder, lines = tmp_path_factory.mktemp("out"), []
    (folder / "prompts.txt").write_text("w11 w12 w13\nw14 w15\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALLER.items():
            patch.setattr(sharing, name, value)
        patch.setattr(sharing, "STRENGTHS", (0.0, 0.5, 1.0))
        patch.setattr(sharing_lines, "LORA_ROWS", (2,))
        patch.setattr(timing, "LEAST_SECONDS", 0.0)
        patch.setattr(sharing, "complete", keep(sharing.complete))
        patch.setattr(sharing, "complete_all", keep(sharing.complete_all))
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        argv = [
            "--schedule",
            "--sections=strengths,refill,lora",
            "--shape=none",
            "--repeats=1",
            "--new-tokens=16",
        ]
        assert (
            main([*models, *argv, f"--prompts={folder / 'prompts.txt'}", f"--out={folder / 'out.json'}"]) == 0
        )
    return json.loads((folder / "out.json").read_text()), "\n".join(lines), calls


@pytest.mark.slow
def test_a_sweep_and_its_single_runs_make_the_same(ran):
    report, _, calls = ran
    (result,) = report["strengths"]
    # The first calls, that compile: one sweep, then a run for each strength.
    sweep, *runs = calls[:4]
    assert result["strengths"] == [0.0, 0.5, 1.0] and len(sweep) == 2 * 3
    assert [set(cell[2] for cell in run) for run in runs] == [{(0.0,)}, {(0.5,)}, {(1.0,)}]
    assert {**runs[0], **runs[1], **runs[2]} == sweep
    assert all(len(tokens) == 16 for tokens in sweep.values()) and len(set(map(tuple, sweep.values()))) > 3
    assert result["times_runs"]["values"] == [
        result["seconds"]["runs"]["values"][0] / result["seconds"]["sweep"]["values"][0]
    ]


@pytest.mark.slow
def test_refilled_slots_and_fixed_batches_make_the_same(ran):
    report, _, calls = ran
    (result,) = report["refill"]
    measured, refilled, *fixed = calls[8:14]
    assert len(measured) == result["cells"] == 2 * 8
    assert refilled == measured and [len(batch) for batch in fixed] == [4] * 4
    assert {cell: tokens for batch in fixed for cell, tokens in batch.items()} == measured
    lengths = list(map(len, measured.values()))
    assert result["longest"] == max(lengths) <= 64 and min(lengths) < max(lengths) / 2
    mean = sum(lengths) / len(lengths)
    assert result["mean_length"] == mean
    assert result["utilization_ceiling"] == pytest.approx(mean / (mean + CHUNK / 2))
    assert result["of_ceiling"] == pytest.approx(result["utilization"] / result["utilization_ceiling"])
    # In whole chunks of four rows.
    assert sum(lengths) / result["utilization"] / (4 * CHUNK) == pytest.approx(
        round(sum(lengths) / result["utilization"] / (4 * CHUNK))
    )


@pytest.mark.slow
def test_a_base_with_an_adapter_is_another_model(ran):
    report, _, calls = ran
    (result,) = report["lora"]
    mixed, single = calls[-2:]
    assert (result["rows"], len(mixed), len(single)) == (2, 2, 4)
    assert {cell[2] for cell in mixed} == {(sides.LAMBDA,)} and {cell[2] for cell in single} == {()}
    alone = {cell[:2]: tokens for cell, tokens in single.items()}
    assert any(tokens != alone[cell[:2]] for cell, tokens in mixed.items())


@pytest.mark.slow
def test_what_is_printed(ran):
    report, printed, _ = ran
    assert not {"decode", "sweep"} & report.keys() and report["versions"]["torch"] is None
    (result,) = report["refill"]
    for words in (
        "strengths   2 rows, 2 prompts of 32 tokens, 3 strengths, 16 new tokens: one sweep",
        f"refill      4 rows, 16 completions of {result['mean_length']:.0f} tokens on average",
        f"slots busy {result['utilization']:.0%}, {result['of_ceiling']:.2f} of what chunks allow (target ≥ 0.9)",
        "lora        2 rows, rank 8: base and adapter",
    ):
        assert words in printed, words


def test_a_second_turn_is_measured_with_its_first_in_the_cache(monkeypatch):
    """Half of the runs read the new tokens alone, the others all of them."""
    read, whole = [], []
    piece, prefill = pieces.read_piece, device_loop.prefill_prompts
    monkeypatch.setattr(
        pieces, "read_piece", lambda *args, **more: read.append(args[4]) or piece(*args, **more)
    )
    monkeypatch.setattr(
        device_loop, "prefill_prompts", lambda *args, **more: whole.append(args) or prefill(*args, **more)
    )
    for name, count in (("CONVERSATION", 200), ("ANSWER", 16), ("MESSAGE", 9)):
        monkeypatch.setattr(prefixes, name, count)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    found = prefixes.bench_prefix(load_policies(), timing.BenchConfig(repeats=1), lambda line: None)
    # A first call and a repeat, of a single step and of a chunk, for both models. The prompt's last token is read by
    # the first step, and the answer's last one but once.
    assert [int(count[0]) for count in read] == [9] * 2 + [8] * 6
    assert len(whole) == 1 + 2 * 2
    assert len(found["cached_to_anew"]["values"]) == len(found["chunk_cached_to_anew"]["values"]) == 1
    assert "200 tokens, 9 of them new" in sharing_lines.LINES["prefix"](found)


def test_starts_take_turns_with_nothing_kept_and_with_what_the_first_has_kept(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    runs = []
    monkeypatch.setattr(starts, "_run", lambda command, env: runs.append((command, env)))
    found = starts.bench_startup(["R", "A"], 2, lambda line: None)
    assert found["seconds"].keys() == {"cold", "warm"} and len(found["seconds"]["cold"]["values"]) == 2
    assert sharing_lines.LINES["startup"](found).startswith("startup   process to 16 tokens: ")
    folders = [env["XDG_CACHE_HOME"] for _, env in runs]
    assert folders[0] == folders[1] != folders[2] == folders[3]
    for command, env in runs:
        assert "JAX_COMPILATION_CACHE_DIR" not in env
        assert {"--reference=R", "--aligned=A", "--max-new-tokens=16"} <= set(command)


def test_what_needs_no_jax_is_told_as_ratios_to_importing_it(monkeypatch):
    runs = []
    monkeypatch.setattr(starts, "_run", lambda command, env: runs.append(command))
    found = starts.bench_imports(2, lambda line: None)
    assert {f"{name} --help" for name in COMMANDS} < found["seconds"].keys() == found["to_import_jax"].keys()
    assert len(found["to_import_jax"]["plot"]["values"]) == 2
    # The run once, and then everything three times: first for its bytecode.
    assert len(runs) == 1 + 3 * len(found["seconds"])
    line = sharing_lines.LINES["imports"](found)
    assert line.startswith("imports   times `import jax` (") and ", tune " in line and "--help" in line


def test_a_start_that_fails_says_why():
    with pytest.raises(ValueError, match=r"^-c .*: no such model$"):
        starts._run(
            [sys.executable, "-c", "import sys; sys.exit('trace' + chr(10) + 'no such model')"],
            dict(os.environ),
        )


def test_training_and_sharing_are_not_measured_together(models, capsys):
    assert main([*models, "--train", "--schedule"]) == 2
    assert (
        "expected one of --train, --schedule and --serve, found --train and --schedule\n"
        in capsys.readouterr().err
    )
    assert main([*models, "--schedule", "--sections=decode"]) == 2
    known = ", ".join(sharing_lines.SECTIONS)
    assert f"--sections: expected some of {known}, got 'decode'" in capsys.readouterr().err
