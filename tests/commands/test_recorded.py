"""Commands that somebody's manifest recorded: data, of which nothing runs that today's command line does not name."""

import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest

from dera_jax.analysis.tuning.retraining import decoding_words
from dera_jax.commands import tune as tune_command
from dera_jax.commands.parts import recorded
from dera_jax.commands.parts import retrain as retrain_command
from dera_jax.commands.parts.recorded import Named, repeatable
from dera_jax.policies.policy import TOY
from tests.support.grids import gridded, rows_of, write_rows

REFUSED = {"help", "version", *recorded.LEFT_OUT}


@pytest.mark.parametrize("module", recorded.COMMANDS)
def test_every_option_is_decided_on(module):
    """A new option belongs to `REPEATED`, if it neither runs code nor writes, or to `LEFT_OUT`."""
    parser = recorded.COMMANDS[module].make_parser()
    options = {name[2:] for name in parser._option_string_actions if name.startswith("--")}
    assert options - set(recorded.REPEATED[module].split()) <= REFUSED
    assert not REFUSED & set(recorded.REPEATED[module].split())


def test_kinds_of_rewards_are_decided_on():
    from dera_jax.rewards.registry import KNOWN

    assert KNOWN.keys() - set(recorded.REWARDS) == {"python"}


RLHF = ["--model=m", "--data=toy", "--out=o"]
MINE = "python:mine:f"


@pytest.mark.parametrize(
    ("module", "words", "code"),
    [
        ("train.rlhf", [*RLHF, f"--reward={MINE}"], f"--reward={MINE}"),
        ("train.rlhf", [*RLHF, "--reward", f"length:1:2, {MINE}"], f"--reward={MINE}"),
        ("train.rlhf", [*RLHF, "--reward=slots", f"--reward={MINE}"], f"--reward={MINE}"),
        ("eval.sweep", [f"--reward=slots,{MINE}"], f"--reward={MINE}"),
        ("eval.sweep", [f"--reward=slots=python:a:b,mine={MINE}"], "--reward=slots=python:a:b"),
        ("eval.sweep", [f"--reward=mine={MINE}"], f"--reward=mine={MINE}"),
        ("eval.sweep", ["--rule=os:getcwd"], "--rule=os:getcwd"),
        ("eval.sweep", ["--rule", "antigravity"], "--rule=antigravity"),
        ("eval.sweep", [f"--draw=best-of:4:slots+{MINE}"], f"--draw=best-of:4:slots+{MINE}"),
    ],
)
def test_code_runs_only_where_it_is_named_again(module, words, code):
    with pytest.raises(ValueError, match="would run code") as caught:
        repeatable(module, words, "m", Named())
    assert f"name it here too: {shlex.quote(code)}" in str(caught.value)
    name, _, value = code.partition("=")
    given = {
        "--reward": Named((value, f"mine={MINE}")),
        "--rule": Named(rule=value),
        "--draw": Named(draw=value),
    }
    assert repeatable(module, words, "m", given[name]) == words
    other = Named((value + "x", "slots"), value + "x", value + "x")
    with pytest.raises(ValueError, match="would run code"):
        repeatable(module, words, "m", other)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--push-to-hub"], "unknown option --push-to-hub"),
        (["--help"], "unknown option --help"),
        (["-h"], "unrecognized arguments: -h"),
        (["--max-new-tokens=many"], "invalid int value"),
        (["--version"], "unknown option --version"),
        (["--he"], "unknown option --he"),
        (["--", "-h"], "unrecognized arguments: -- -h"),
        (["a file"], "unrecognized arguments: a file"),
        (["--x\x1b[2J"], r"unknown option --x\x1b[2J"),
    ],
)
def test_what_is_no_option_is_said_in_a_line(words, problem, capsys):
    with pytest.raises(ValueError) as caught:
        repeatable("eval.sweep", words, "m", Named())
    message = str(caught.value)
    assert message.startswith("--retrain: the eval.sweep command recorded in m cannot be repeated: ")
    assert problem in message and "\n" not in message and "\x1b" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("spec", ["http://host/v1", "gold", "mt-bench", ""])
def test_other_kinds_of_rewards_are_asked_for_by_nobody_else(spec):
    with pytest.raises(ValueError, match="of a kind that is not repeated"):
        repeatable("eval.sweep", [f"--reward=slots,{spec}"], "m", Named())


@pytest.mark.parametrize(
    "draw",
    ["mixture", "exact", "particles:8", "best-of:8:length:1:2", "soft-best-of:2:0.1:log-ratio*2+model:DIR"],
)
def test_draws_by_computations_on_data_are_repeated(draw):
    assert repeatable("eval.sweep", [f"--draw={draw}"], "m", Named()) == [f"--draw={draw}"]


@pytest.mark.parametrize("draw", ["best-of:8", "mine:draw", "best-of:8:gold:http://host/v1"])
def test_draws_that_cannot_be_read_are_not_repeated(draw):
    with pytest.raises(ValueError, match="recorded in m cannot be repeated: --draw: "):
        repeatable("eval.sweep", [f"--draw={draw}"], "m", Named())


@pytest.mark.parametrize("rule", ["linear", "dera_jax.realign:linear_rule"])
def test_rules_of_the_package_are_no_strangers_code(rule):
    assert repeatable("eval.sweep", [f"--rule={rule}"], "m", Named()) == [f"--rule={rule}"]


def test_where_and_how_it_ran_is_left_out():
    words = ["--coordinator=evil:1", "--num-processes=2", "--process-id", "1", "--dry-run", "--top-k=5"]
    assert repeatable("eval.sweep", words, "m", Named()) == ["--top-k=5"]
    assert repeatable("train.rlhf", [*RLHF, "--reward=slots", "--report-to=tensorboard"], "m", Named()) == [
        *RLHF, "--reward=slots",
    ]  # fmt: skip


def test_a_configuration_file_is_looked_into(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"top_k": 5, "stop": ["a", "b"], "seed": 1, "coordinator": "evil:1"}))
    words = [f"--config={path}", "--seed=2"]
    assert repeatable("eval.sweep", words, "m", Named()) == ["--top-k=5", "--stop=a", "--stop=b", "--seed=2"]
    path.write_text(json.dumps({"reward": MINE}))
    with pytest.raises(ValueError, match="would run code"):
        repeatable("eval.sweep", words, "m", Named())
    path.unlink()
    with pytest.raises(ValueError, match="cannot read"):
        repeatable("eval.sweep", words, "m", Named())


def test_rewards_that_have_names_are_repeated_with_what_they_are():
    run = {
        "provenance": {"command": ["python", "-m", "eval.sweep", "--reward", "mine=python:a:b, other=slots,slots"],
                       "models": [{"name": "r"}]},
        "extent": {"num_samples": 1},
    }  # fmt: skip
    words = decoding_words(run, "run", "m", Path("p"), 1, ["other", "slots", "mine"], Path("o"))
    assert "--reward=other=slots,slots,mine=python:a:b" in words


def test_a_line_is_what_a_shell_takes():
    words = ["--stop=a b", "--reward=$(rm)", "--out=x\x1b[2J"]
    line = recorded.line("eval.sweep", words)
    assert shlex.split(line)[3:] == ["--stop=a b", "--reward=$(rm)", r"--out=x\x1b[2J"]


# A model and a run of somebody else


@pytest.fixture
def stranger(tmp_path):
    """A downloaded model and a run, whose manifests are to be filled in, and what tells that code was run."""
    model, run, flag = tmp_path / "model", tmp_path / "run", tmp_path / "flag"
    model.mkdir()
    run.mkdir()
    (model / "data.jsonl").write_text(json.dumps({"prompt": "x", "cmd": f"touch {flag}"}) + "\n")
    grid = gridded({0: 0, 0.5: 1, 1: 0}, 24, samples=1)
    rows = rows_of(grid)
    for row in rows:
        row["rewards"] = {"length:1:2": row["rewards"]["gold"]}
    write_rows(run / "rows.jsonl", rows)
    told = {
        "format": 1, "identity": {"models": {"reference": "r"}}, "extent": {"num_samples": 1, "prompts": "toy"},
        "provenance": {
            "command": ["python", "-m", "eval.sweep", "--rows=4"],
            "models": [{"name": str(TOY / "reference")}, {"name": str(model)}],
        },
    }  # fmt: skip
    train = [f"--model={TOY / 'reference'}", f"--data={model}/data.jsonl", "--batch-size=2", "--max-steps=1"]

    def write(training=("--reward=slots",), decoding=(), **changes):
        words = ["python", "-m", "train.rlhf", *train, *training]
        manifest = {"method": "rloo", "beta": 0.1, "provenance": {"command": words}}
        (model / "manifest.json").write_text(json.dumps(manifest | changes))
        words = [*told["provenance"]["command"], *decoding]
        provenance = told["provenance"] | {"command": words}
        (run / "manifest.json").write_text(json.dumps(told | {"provenance": provenance}))
        return run

    write.flag, write.folder = flag, tmp_path
    return write


def retrain(run, out, *more):
    return tune_command.main([str(run), "--retrain", f"--retrain-out={out}", *more])


EVIL = "--reward=python:subprocess:getoutput"


@pytest.mark.parametrize(
    ("manifests", "problem"),
    [
        ({"training": [EVIL]}, "name it here too: --reward=python:subprocess:getoutput"),
        ({"training": ["--reward=slots", "--plugin=os:system"]}, "unknown option --plugin"),
        ({"decoding": ["--rule=subprocess:getoutput"]}, "name it here too: --rule=subprocess:getoutput"),
        ({"decoding": ["--config=/dev/null"]}, "/dev/null"),
        ({"provenance": {"command": ["python", "-m", "subprocess.getoutput"]}}, "expected train.dpo or train.rlhf"),
        ({"provenance": {"command": ["python", "-m", "\x1b[2J", "x"]}}, r"made by python -m \x1b[2J"),
        ({"provenance": {"command": "python -m train.rlhf"}}, "at provenance.command: expected a list, found a text"),
        ({"provenance": {"command": [["x"]]}}, "at provenance.command[0]: expected a text, found a list"),
        ({"beta": "0.1"}, "at beta: expected a number or null, found a text"),
        ({"method": "\x1b]0;x\x07"}, r"made by \x1b]0;x\x07"),
    ],
)  # fmt: skip
def test_nothing_that_a_stranger_recorded_runs(stranger, capsys, manifests, problem):
    run, out = stranger(**manifests), stranger.folder / "out"
    assert retrain(run, out) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert problem in error and "\x1b" not in error
    assert not out.exists() and not stranger.flag.exists()


def test_a_reward_that_rows_name_is_as_little_run(stranger, capsys):
    run = stranger()
    text = (run / "rows.jsonl").read_text().replace('"length:1:2"', '"slots,python:subprocess:getoutput"')
    (run / "rows.jsonl").write_text(text)
    out = stranger.folder / "out"
    assert retrain(run, out) == 2
    assert "name it here too: --reward=python:subprocess:getoutput" in capsys.readouterr().err
    assert not out.exists() and not stranger.flag.exists()


def test_what_was_recorded_is_shown_and_code_that_is_named_runs(stranger, capsys, monkeypatch):
    """A module that leaves a file when it is imported: it is, where the user asks for it, and not before."""
    monkeypatch.chdir(stranger.folder)
    monkeypatch.setattr("sys.path", [*sys.path])
    (stranger.folder / "of_a_stranger.py").write_text(
        f"import pathlib\n\npathlib.Path({str(stranger.flag)!r}).touch()"
    )
    code = "--reward=python:of_a_stranger:f"
    run, out = stranger(training=[code, "--num-samples=2"]), stranger.folder / "out"
    prompts = stranger.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(24)))
    assert retrain(run, out, f"--prompts={prompts}") == 2
    assert not stranger.flag.exists() and "of_a_stranger" not in sys.modules
    with pytest.raises(SystemExit):  # the module has no such function
        retrain(run, out, f"--prompts={prompts}", code)
    shown = capsys.readouterr().err
    assert f"  python -m train.rlhf --model={TOY}" in shown and "  python -m eval.sweep --rows=4" in shown
    assert stranger.flag.exists()


@pytest.mark.parametrize("word", ["--reward=slots", "--rule=mine:f", "--retrain-out=x"])
def test_words_of_retraining_have_no_meaning_without_it(stranger, capsys, word):
    assert tune_command.main([str(stranger()), word]) == 2
    assert f"{word.partition('=')[0]} has no meaning without --retrain" in capsys.readouterr().err


ODD = [
    None,
    [],
    {},
    "",
    0,
    -1.5,
    True,
    "x" * 9999,
    "\x1b[2J",
    "\ud800",
    ["\x1b[2J"],
    {"a": {"b": []}},
    10**400,
    "../x",
]


def places(value, path=()):
    """Yields the places in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from places(inner, (*path, name))


def changed(value, path, new):
    """Returns a JSON value with another one at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("whose", ["model", "run"])
def test_manifests_with_odd_values_anywhere(stranger, capsys, monkeypatch, whose):
    """A few at each place, other ones at the next: a line and code 2, or the commands as they were recorded."""
    run, ran = stranger(train_config={"seed": 0}, reference={"fingerprint": "r"}), []
    monkeypatch.setattr(retrain_command, "_run", lambda *command: ran.append(command))
    path = stranger.folder / whose / "manifest.json"
    whole, values = json.loads(path.read_text()), itertools.cycle(ODD)
    for place in places(whole):
        for value in itertools.islice(values, 3):
            path.write_text(json.dumps(changed(whole, place, value)))
            code = retrain(run, stranger.folder / "out")
            told = capsys.readouterr()
            assert code == 2 and "\x1b" not in told.err + told.out, (place, value)
            assert told.err.splitlines()[-1].startswith("error: "), (place, value)
            assert not stranger.flag.exists()
    assert all(module in recorded.COMMANDS for module, _ in ran)
