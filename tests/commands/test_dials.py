"""Dials beside λ: a run for each value of a rule's, a strength for each value of a weight's."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import plot, sweep, tune
from dera_jax.commands.options.dials import Swept, read_dial, strengths_of
from dera_jax.decoding import device_loop, shared_loop
from dera_jax.policies.steering import Steering, write_steering
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from tests.support.command_runs import PNG
from tests.support.rows import make_rows


def _texts(run):
    return {(row["prompt_id"], row["lambda"]): row["completion"] for row in read_rows(run)}


@pytest.fixture(scope="module")
def swept(models, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("dial") / "runs"
    words = [*models, prompts, "--max-new-tokens=24", "--rows=4", "--lambda=1,8", "--rule=plausible"]
    assert sweep.main([*words, "--sweep=alpha=0,0.4", f"--out={out}"]) == 0
    return out, words


def test_a_run_for_each_value_says_which_in_its_rows(swept):
    out, _ = swept
    for name in ("alpha=0", "alpha=0.4"):
        assert {row["rule"] for row in read_rows(out / name)} == {f"plausible:{name}"}
        words = read_manifest(out / name)["provenance"]["command"]
        assert f"--rule=plausible:{name}" in words and not any("--sweep" in word for word in words)
    assert _texts(out / "alpha=0") != _texts(out / "alpha=0.4")
    assert (out / "sweep.png").read_bytes().startswith(PNG)


def test_its_rows_are_those_of_a_sweep_with_that_rule(swept, tmp_path):
    out, words = swept
    assert sweep.main([*words, "--rule=plausible:alpha=0.4", f"--out={tmp_path / 'one'}"]) == 0
    assert _texts(tmp_path / "one") == _texts(out / "alpha=0.4")


def test_other_values_compile_nothing_and_those_there_are_kept(swept, call, tmp_path):
    source, words = swept
    out = shutil.copytree(source, tmp_path / "runs")
    before = (out / "alpha=0.4" / "rows.jsonl").read_bytes()
    loops = [*vars(device_loop).values(), *vars(shared_loop).values()]
    programs = [value for value in loops if hasattr(value, "_cache_size")]
    sizes = [program._cache_size() for program in programs]
    code, printed, _ = call(sweep.main, *words, "--sweep=alpha=0.4,0.9", f"--out={out}")
    assert code == 0 and "alpha=0.4, alpha=0.9; sweep.png" in printed
    assert sum(sizes) > 0 and [program._cache_size() for program in programs] == sizes
    assert (out / "alpha=0.4" / "rows.jsonl").read_bytes() == before


def test_the_strength_of_a_steering_is_a_dial(toy, prompts, tmp_path, refused):
    policy, file = load_policy(toy), tmp_path / "v.safetensors"
    vector = np.random.default_rng(1).standard_normal(policy.config.width).astype(np.float32)
    write_steering(file, Steering(policy.config.width, policy.config.num_layers, {1: vector}))
    words = [f"--reference={toy}", prompts, "--max-new-tokens=12", "--rows=4", "--lambda=1"]
    for given, told in ((f"{file}@2", "expected --steer without a strength"), ("none", "expected a file")):
        assert told in refused(sweep.main, *words, f"--steer={given}", "--sweep=steer=0,2")
    runs, one = tmp_path / "runs", tmp_path / "one"
    assert sweep.main([*words, f"--steer={file}", "--sweep=steer=0,2", f"--out={runs}"]) == 0
    assert sweep.main([*words, f"--steer={file}@2", f"--out={one}"]) == 0
    assert _texts(runs / "steer=2") == _texts(one)
    assert {row["kl_to_reference"] for row in read_rows(runs / "steer=0")} == {0.0}
    assert f"--steer={file}@2" in read_manifest(runs / "steer=2")["provenance"]["command"]
    assert (runs / "sweep.png").read_bytes().startswith(PNG)


def test_the_folder_of_all_values_is_drawn_and_tabled(swept, call, tmp_path):
    out, _ = swept
    code, printed, _ = call(plot.main, out, "--table=markdown")
    titles = [line for line in printed.splitlines() if line.startswith("alpha")]
    assert code == 0 and titles == ["alpha=0", "alpha=0.4"]
    figure = tmp_path / "over.png"
    assert call(plot.main, out, "--over=dial", f"--out={figure}")[:2] == (0, f"{figure}\n")
    assert figure.read_bytes().startswith(PNG)


def test_over_the_dial_each_strength_has_a_curve():
    from dera_jax.analysis.dials import over_dial
    from dera_jax.analysis.summaries import summarize

    runs = {f"p={p}": summarize(make_rows(seed)) for seed, p in enumerate((-1, 0.5))}
    dial, curves = over_dial(runs)
    strengths = [summary.lambda_ for summary in runs["p=-1"]]
    assert dial == "p" and len(curves) == len(strengths)
    for place, curve in enumerate(curves.values()):
        assert [summary.lambda_ for summary in curve] == [(-1.0,), (0.5,)]
        assert [each.length for each in curve] == [runs[name][place].length for name in runs]


def test_runs_of_other_names_have_no_dial(fails, finished):
    assert fails(plot.main, finished, "--over=dial").endswith("in folders such as alpha=0.1, found run")


def test_weights_are_the_strengths_they_imply():
    dial = Swept("a", (0.0, 0.5, 2.0))
    for row, a in zip(strengths_of("1, a ,-a", 3, dial).split(","), dial.values, strict=True):
        assert list(map(float, row.split("+"))) == [a, -a]
    assert strengths_of("1/2-1/2a,0.5a,.5", 3, dial) == "0+0.5,0.25+0.5,1+0.5"
    assert strengths_of("0.3,0.7", 2, None) == "0.7"
    assert read_dial("a=0:1:0.1").values == tuple(float(Fraction(n, 10)) for n in range(11))


def test_models_with_weights_decode_as_a_pair_at_the_strength(toy, aligned, prompts, finished, tmp_path):
    out = tmp_path / "weighed"
    words = [f"--models={toy},{aligned}", "--weights=1-a,a", "--sweep=a=0,0.5,1", "--reward=length:24:30"]
    assert sweep.main([*words, prompts, "--max-new-tokens=24", "--rows=4", f"--out={out}", "--beta=0.1"]) == 0
    assert _texts(out) == _texts(finished)
    recorded = read_manifest(out)["provenance"]["command"]
    assert f"--aligned={aligned}" in recorded and "--lambda=0,0.5,1" in recorded
    assert not any(word.startswith(("--models", "--weights", "--sweep")) for word in recorded)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sweep=alpha"], "--sweep: expected DIAL=VALUES such as alpha=0,0.1,0.3, found alpha"),
        (["--sweep=p=1"], "--sweep: expected a dial of --rule=linear, none, in a rule without dials"),
        (["--sweep=p=1", "--rule=plausible"], "a dial of --rule=plausible, plausible.alpha; found p"),
        (["--sweep=p=1", "--rule=power:p=-1"], "expected no value of it in --rule, found power:p=-1"),
        (["--sweep=tokens=1.5", "--rule=first"], "expected tokens, a whole number, from 1 to 100000"),
        (["--rule=plausible:"], "plausible: expected alpha=, found"),
        (["--sweep=tokens=1", "--rule=first+ramp"], "first.tokens, ramp.tokens; found tokens"),
        (["--sweep=alpha=0,2", "--rule=plausible"], "--sweep=alpha: expected alpha from 0 to 1, found 2"),
        (["--sweep=steer=1"], "--sweep=steer: expected --steer=FILE, whose strength it is"),
        (["--weights=1,1"], "--weights: expected a sum of 1, found 2; weights that sum to s"),
        (["--weights=a,a", "--sweep=a=.5"], "--weights: expected a sum of 1, found 0 + 2 a"),
        (["--weights=1-a,a"], "--weights: expected numbers, or --sweep=LETTER=VALUES, found a"),
        (["--weights=1-a,b", "--sweep=a=1"], "--weights: expected the letter of --sweep=a, found a, b"),
        (["--weights=1,a,-a", "--sweep=a=1"], "--weights: expected one for each of 2 models, found 3"),
        (["--weights=1--a,a", "--sweep=a=1"], "--weights: expected numbers such as 0.5, or 1-a"),
        (["--weights=1/0,1"], "--weights: 1/0 is not a finite number"),
        (["--weights=.5,.5", "--lambda=1"], "--weights: expected no --lambda beside it"),
    ],
)
def test_what_is_no_dial_or_no_weight_is_told(refused, words, told):
    assert told in refused(sweep.main, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sweep=a=1", "--sweep=b=2"], "--sweep: expected it once, found a second, b=2"),
        (["--models=A"], "--models: expected two models or more, found A"),
        (["--models=A,,B"], "--models: expected two models or more"),
        (["--reference=C", "--models=A,B"], "--models: expected no --reference and no --aligned beside it"),
    ],
)
def test_models_that_are_no_list_are_told(call, words, told):
    code, out, err = call(sweep.main, *words)
    assert (code, out) == (2, "") and told in err


def test_a_run_is_no_folder_of_runs(refused, finished, models, prompts):
    words = [
        *models,
        prompts,
        "--max-new-tokens=24",
        "--rule=plausible",
        "--sweep=alpha=0",
        f"--out={finished}",
    ]
    assert "is a run; --sweep writes a run for each value" in refused(sweep.main, *words)


def test_folders_are_looked_at_before_anything_is_decoded(fails, models, prompts, tmp_path):
    (tmp_path / "alpha=1").write_text("mine")
    words = [*models, prompts, "--max-new-tokens=24", "--rule=plausible", "--sweep=alpha=0,1"]
    assert "expected a folder, found a file" in fails(sweep.main, *words, f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["alpha=1"]


def test_other_commands_tell_where_the_runs_are(swept, fails):
    assert "runs are in its folders alpha=0, alpha=0.4" in fails(tune.main, swept[0], "--objective=kl")


def test_a_config_file_may_hold_them(call, tmp_path, models, prompts):
    (tmp_path / "c.json").write_text(json.dumps({"rule": "power", "sweep": "p=-1,1", "lambda": "0.5"}))
    words = [*models, prompts, "--max-new-tokens=2", "--num-prompts=1", f"--config={tmp_path / 'c.json'}"]
    assert call(sweep.main, *words, f"--out={tmp_path / 'o'}")[0] == 0
    found = [np.sum([r["kl_to_reference"] for r in read_rows(tmp_path / "o" / f"p={p}")]) for p in (-1, 1)]
    assert found[0] != found[1]
