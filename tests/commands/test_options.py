"""What a user asks commands for: help, options, a config file; one line where it cannot be."""

import importlib
import json
import os
import re
from functools import partial

import pytest

import dera_jax
from dera_jax import read_rows
from dera_jax.commands import dera, dpo, generate, plan, plot, reward, rlhf, serve, sft, sweep
from dera_jax.commands import score as score_command
from dera_jax.common import locks
from dera_jax.common.spelling import COMMANDS
from dera_jax.performance.plan.chips import CHIPS
from dera_jax.policies import sizes
from dera_jax.rules.catalogue import KNOWN

# Help

MODEL = ["--reference", "--aligned", "--dtype"]
DECODE = [
    "--draw", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--stop", "--seed", "--rows", "--rule"
]  # fmt: skip
TRAIN = [
    "--model", "--data", "--out", "--dtype", "--learning-rate", "--max-steps", "--batch-size",
    "--warmup-ratio", "--lr-scheduler-type", "--weight-decay", "--max-grad-norm", "--seed",
]  # fmt: skip
OPTIONS = {
    sweep: [*MODEL, *DECODE, "--lambda", "--prompts", "--reward", "--out", "--num-prompts", "--num-samples",
            "--beta", "--config", "--dry-run"],
    generate: [*MODEL, *DECODE, "--lambda", "--prompt", "--num-samples"],
    score_command: [*MODEL, "RUN", "--reward", "--pairs", "--models", "--prompts", "--lambda", "--out"],
    plot: ["RUN", "--table", "--out", "markdown", "latex"],
    sft: [*TRAIN, "--from-scratch", "--max-length"],
    reward: [*TRAIN, "--eval-share", "--max-length", "--center-rewards-coefficient"],
    dpo: [*TRAIN, "--reference", "--beta", "--loss", "--lora-r", "--sync-ref-model", "--label-smoothing"],
    rlhf: [*TRAIN, "--reference", "--reward", "--beta", "--num-samples", "--max-new-tokens", "--algorithm"],
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_help_names_every_option_and_fits_100_columns(call, command):
    code, out, err = call(command.main, "--help")
    assert (code, err) == (0, "")
    words = set(re.findall(r"--[\w-]+|\w+", out))
    assert set(OPTIONS[command]) <= words
    assert max(map(len, out.splitlines())) <= 100
    # Every option says what it is.
    described = re.findall(r"^  (?:-h, )?(--[\w-]+).*\n?(?:   .+\n)*", out, re.MULTILINE)
    assert set(described) >= {option for option in OPTIONS[command] if option.startswith("--")}


def test_dera_runs_the_commands(call, refused):
    code, out, _ = call(dera.main, "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    assert set(COMMANDS) <= set(re.findall(r"\w+", out))
    for name in COMMANDS:
        code, out, err = call(dera.main, name, "--help")
        assert (code, err) == (0, "") and f"dera {name} " in out.splitlines()[0]
    assert "unknown command 'swep' (did you mean sweep?); expected one of sweep, " in refused(
        dera.main, "swep"
    )
    assert "no command" in refused(dera.main)
    assert "--lambda" in refused(dera.main, "sweep", "--lambda=x")
    assert "--lambda" in refused(partial(dera.run, "sweep"), "--lambda=x")


def test_rules_are_listed(call):
    for command in (sweep, generate, serve):
        code, out, err = call(command.main, "--rule=list")
        assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 120
        assert set(KNOWN) <= set(re.findall(r"^  ([a-z-]+) ", out, re.MULTILINE))


# Wrong arguments


WRONG = {
    "--lambda=nan": "expected a finite number such as 0.5 or 1/6, found 'nan'",
    "--lambda=strong": "such as 0.5 or 1/6, found 'strong' in 'strong'; write several as 0,0.5,1 or 0:2:0.5",
    "--lambda=": "--lambda: expected a value, found an empty one",
    "--lambda=0,": "a number is missing",
    "--lambda=0:1": "the range '0:1' has no step",
    "--lambda=0.5+0.5": "expected one number for the one aligned model",
    "--lambda=1e39": "too large for float32",
    "--lambda": "argument --lambda: expected one argument",
    "--num-prompts=0": "--num-prompts: expected a whole number, at least 1, got 0",
    "--num-samples=-2": "--num-samples: expected a whole number, at least 1, got -2",
    "--num-samples=99999999999999999999": "--num-samples: expected a whole number, at most 1000000000, got 99999999",
    "--num-samples=999999999": "expected at most 10000000 completions, found 3 prompts × 999999999 samples × 3",
    "--num-prompts=99999999999": "--num-prompts: expected a whole number, at most",
    "--max-new-tokens=99999999999": "max_new_tokens: expected a whole number, at most 1000000",
    "--rows=99999999999": "--rows: expected a whole number, at least 1 and at most",
    "--rows=1000000000": "which the devices have, found weights",
    "--num-samples=two": "argument --num-samples: invalid int value: 'two'",
    "--max-new-tokens=0": "max_new_tokens: expected a whole number, at least 1, got 0",
    "--max-new-tokens=600": "it has room for --max-new-tokens=2",
    "--temperature=-1": "temperature: expected a number from 0 to inf, got -1.0",
    "--temperature=nan": "temperature: expected a number",
    "--temperature=warm": "invalid float value: 'warm'",
    "--draft-length=0": "draft_length: expected a whole number, at least 1, got 0",
    "--draft=medusa": "argument --draft: invalid choice: 'medusa'",
    "--top-p=0": "top_p: expected a number in (0, 1], got 0",
    "--top-p=2": "top_p: expected a number from 0 to 1, got 2.0",
    "--top-k=-2": "top_k: expected a whole number, at least 1, got -2",
    "--seed=-1": "seed: expected a whole number, at least 0, got -1",
    "--rows=0": "--rows: expected a whole number, at least 1 and at most 1000000000, or auto, got '0'",
    "--rows=many": "--rows: expected a whole number, at least 1 and at most 1000000000, or auto, got 'many'",
    "--beta=0": "--beta: expected a number above 0, got 0",
    "--beta=-1": "--beta: expected a number from 0 to inf",
    "--beta=nan": "--beta: expected a number",
    "--stop=": "--stop: expected a value, found an empty one",
    "--prompts=": "--prompts: expected a value, found an empty one",
    "--mesh=": "--mesh: expected a value, found an empty one",
    "--config=": "--config: expected a value, found an empty one",
    "--chat-template=": "--chat-template: expected a value, found an empty one",
    "--chat-template-kwargs=[1]": "expected an object as JSON such as {\"enable_thinking\": false}, found '[1]'",
    "--chat-template-kwargs={": "--chat-template-kwargs: expected an object as JSON",
    "--chat-template-kwargs={\"messages\": 1}": "expected settings of the template, found 'messages'",
    "--enable-thinking": "unknown option --enable-thinking: here it is --chat-template-kwargs",
    "--reward=": "--reward: expected a value, found an empty one",
    "--out=": "--out: expected a value, found an empty one",
    "": "an argument: expected a value, found an empty one",
    "--stop=\\": "--stop: broken escape",
    "--dtype=int8": "invalid choice: 'int8'",
    "--reward=politeness": "unknown reward 'politeness'; known: length:MIN:MAX[:STOP], lexicon:FILE, ",
    "--reward=length:9": "expected length:MIN:MAX",
    "--reward=lexicon:gone.txt": "lexicon:gone.txt: no such file",
    "--reward=python:json:gone": "has no function gone",
    "--rule=gone:rule": "--rule=gone:rule: ModuleNotFoundError: No module named 'gone'",
    "--rule=json:gone": "--rule=json:gone: the module json has no function gone",
    "--rule=json": "--rule=json: expected linear, tilt, power, ",
    "--rule=sys:path": "--rule=sys:path: the module sys has no function path",
    "--rule=json:dumps": "rule json:dumps fails on logits[models, rows, vocab]: TypeError",
    "--prompts=gone.jsonl": "gone.jsonl: no such file",
    "--prompts=gone": "no file suffix, no shipped name",
    "--aligned=a,,b": "--aligned: a model is missing in 'a,,b'",
    "--aligned=./gone": "./gone: no such folder",
    "--config=gone.json": "gone.json",
    "extra": "unexpected extra",
    "-x": "unexpected -x",
    "--nonsense=1": "unknown option --nonsense (see python -m eval.sweep --help)",
    # No abbreviations, but a hint.
    "--lambd=1": "unknown option --lambd: did you mean --lambda?",
    "--num-sample=1": "unknown option --num-sample: did you mean --num-samples?",
    "--temp=1": "unknown option --temp",
    # Names of other tools.
    "--model=x": "unknown option --model: here it is --reference and --aligned",
    "--ref_model=x": "unknown option --ref-model: here it is --reference",
    "--output_dir=x": "unknown option --output-dir: here it is --out",
    "--max_tokens=9": "unknown option --max-tokens: here it is --max-new-tokens",
    "--batch-size=9": "unknown option --batch-size: here it is --rows",
}  # fmt: skip


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_argument_is_one_line(refused, base, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    assert WRONG[word] in refused(sweep.main, *base, word)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command, words, message",
    [
        (generate, ["--num-samples=0"], "--num-samples"),
        (generate, ["--prompts=x"], "unknown option --prompts: here it is --prompt"),
        (generate, ["--prompt="], "--prompt: expected a value, found an empty one"),
        (generate, ["--prompt", ""], "--prompt: expected a value, found an empty one"),
        (generate, ["--reference=x"], "expected both --reference and --aligned"),
        (generate, ["--aligned=x"], "expected both --reference and --aligned"),
        (generate, ["Once upon"], "unexpected Once upon: did you mean --prompt=…?"),
        (generate, ["--interactive", "--prompt=x"], "expected --prompt or --interactive, found both"),
        (plot, [], "the following arguments are required: RUN"),
        (plot, ["gone"], "gone"),
        (plot, ["gone", "--table=html"], "invalid choice: 'html'"),
        (score_command, [], "expected one of RUN with --reward or --best-of, --pairs=FILE, or --models=A,B"),
        (score_command, ["run", "--pairs=x"], "expected one of RUN"),
        (score_command, ["run"], "RUN: expected --reward"),
        (score_command, ["gone", "--reward=length:1:2"], "gone: no such folder"),
        (score_command, ["run", "--reward=length:1:2", "--lambda=1"], "--lambda has no meaning with RUN"),
        (score_command, ["--pairs=x", "--reward=length:1:2"], "--reward has no meaning with --pairs"),
        (score_command, ["--pairs=gone.jsonl"], "gone.jsonl: no such file"),
        (score_command, ["--pairs=gone.jsonl", "--rule=a:b"], "unknown option --rule"),
        (score_command, ["--models=a"], "--models: expected two models A,B, found 'a'"),
        (score_command, ["--models=a,"], "--models: expected two models A,B, found 'a,'"),
        (score_command, ["--models=a,b"], "expected --prompts"),
        (score_command, ["--models=a,b", "--num-prompts=0", "--prompts=chat"], "at least 1, found 0"),
        (sft, ["--output_dir=x"], "unknown option --output-dir: here it is --out"),
        (sft, ["--dataset_name=x"], "unknown option --dataset-name: here it is --data"),
        (sft, ["--model=x"], "the following arguments are required: --out, --data"),
        (rlhf, ["--lr=1"], "unknown option --lr: here it is --learning-rate"),
        (
            rlhf,
            ["--bf16", "--reward_model_path=x"],
            "unknown option --bf16: here it is --dtype=bfloat16; "
            "unknown option --reward-model-path: here it is --reward=model:DIR",
        ),
        (
            dpo,
            ["--loss_type=ipo", "--logging-steps=1"],
            "unknown option --loss-type: here it is --loss; "
            "unknown option --logging-steps: every step is logged",
        ),
    ],
)
def test_a_wrong_argument_of_other_commands_is_one_line(
    refused, tmp_path, monkeypatch, command, words, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(command.main, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"prompt": "a"}\n{"prompt": \n', ":2: not valid JSON"),
        ('\n\n{"prompt": ""}\n', ":3: prompt is empty"),
        ('{"prompt": "a"}\n{"text": "b"}\n', ":2: expected one of the fields 'prompt', 'messages' and 'turns'"),
        ('{"prompt": "a"}\n[1]\n', ":2: expected a JSON object, found a list"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b"}\n', "id 1 is already taken"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "prompt 0: the prompt has `messages`"),
        (json.dumps({"prompt": "and " * 500, "id": "long"}), ":1: 503 tokens and 128 new ones do not fit"),
        ("", "no prompts in it"),
    ],
)  # fmt: skip
def test_broken_prompts_are_named_by_file_and_line(refused, models, tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    assert message in refused(sweep.main, *models, f"--prompts={path}", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_strengths_of_prompts_must_be_there(refused, base):
    assert "prompt 0 has no `lambda`, which --lambda=prompt needs" in refused(
        sweep.main, *base, "--lambda=prompt"
    )


# Settings from a file


@pytest.mark.slow
def test_a_config_file_stands_for_options(call, models, prompts, finished, tmp_path):
    path = tmp_path / "sweep.json"
    settings = {
        "lambda": [0, 0.5], "max_new_tokens": 24, "rows": 4, "prompts": prompts.partition("=")[2],
        "reward": ["length:24:30", "keywords:a"], "stop": ["x\\n", "y,z"], "seed": None, "dry-run": False,
        "num-prompts": 1,
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    out = tmp_path / "run"
    code, _, _ = call(sweep.main, *models, f"--config={path}", f"--out={out}", "--num_prompts=2")
    assert code == 0
    rows = read_rows(out)
    # The command line wins.
    assert {(row["prompt_id"], row["lambda"]) for row in rows} == {(0, 0), (0, 0.5), (1, 0), (1, 0.5)}
    assert all(row["rewards"].keys() == {"length:24:30", "keywords:a"} for row in rows)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["identity"]["decode"]["stop"] == ["x\n", "y,z"]
    code, _, _ = call(sweep.main, *models, f"--config={path}", f"--out={tmp_path / 'two'}", "--stop=q")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["identity"]["decode"]["stop"] == ["q"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "sweep.json: not JSON"),
        ("[1]", "sweep.json: expected a JSON object with option names as keys"),
        ('{"model": "x"}', "sweep.json: unknown option --model: here it is --reference and --aligned"),
        ('{"help": true}', "sweep.json: unknown option --help"),
        ('{"seed": true}', "sweep.json: seed: expected a string, a number or a list of them, found True"),
        ('{"seed": {"a": 1}}', "sweep.json: seed: expected a string, a number"),
        ('{"dry_run": 1}', "sweep.json: dry-run: expected true or false, found 1"),
        ('{"seed": "x"}', "argument --seed: invalid int value: 'x'"),
        ('{"lambda": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_broken_config_file_is_one_line(refused, base, tmp_path, content, message):
    (tmp_path / "sweep.json").write_text(content)
    assert message in refused(sweep.main, *base, f"--config={tmp_path / 'sweep.json'}")


# Names of commands


def test_every_text_names_commands_as_they_were_called(call, finished):
    """In a checkout `python -m eval.X`; where `dera` was called, never: advice, errors and help."""
    calls = [[name, "--help"] for name in COMMANDS] + [
        ["tune", str(finished), "--objective=gone"],
        ["tune", str(finished), "--beta=0.1"],
        ["sweep", "--lambd=1"],
        ["sft"],
        ["plot", "gone"],
    ]
    for name, *words in calls:
        command = importlib.import_module(f"dera_jax.commands.{name}")
        _, *direct = call(command.main, *words)
        _, *by_dera = call(dera.main, name, *words)
        written = re.compile(rf"\b(eval|train)\.({'|'.join(COMMANDS)})\b")
        assert not written.search("".join(by_dera)) and "python -m" not in "".join(by_dera)
        assert not re.search(rf"\bdera ({'|'.join(COMMANDS)})\b", "".join(direct))
        if "--help" in words:
            assert f"usage: python -m {COMMANDS[name]}.{name} " in direct[0]


@pytest.mark.parametrize("words", [["--version"], ["sweep", "--version"], ["sft", "--version"]])
def test_the_version_is_told(call, words):
    assert call(dera.main, *words) == (0, f"dera_jax {dera_jax.__version__}\n", "")


def test_known_sizes_in_the_help_of_plan_are_those_that_there_are(call):
    _, out, _ = call(plan.main, "--help")
    assert set(plan.SIZES) == set(sizes.SIZES) and all(name in out for name in (*plan.SIZES, *CHIPS))


@pytest.mark.parametrize(
    "command, words", [(sweep, []), (sft, ["--model=gone", "--data=gone.txt"])], ids=["sweep", "sft"]
)
def test_a_folder_that_another_run_writes_to_is_refused_at_once(call, tmp_path, command, words):
    lock = locks.lock_folder(tmp_path)
    code, out, err = call(command.main, *words, f"--out={tmp_path}")
    os.close(lock)
    # Nothing was loaded, and whose it is is told where the system tells.
    told = rf"error: another run is writing to {tmp_path}( \(process {os.getpid()}\))?\n"
    assert (code, out) == (2, "") and re.fullmatch(told, err)
