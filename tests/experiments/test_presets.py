"""Presets of the paper's sizes: what they say can be run, and at toy size is."""

import importlib
import json
import shlex

import pytest

import dera_jax.data.prompts
import dera_jax.rewards.registry
from dera_jax.commands.options import cli
from dera_jax.commands.sweep import _arguments, make_parser
from dera_jax.common.files import write_text
from dera_jax.common.json_files import read_json
from dera_jax.common.usable import Dropped
from dera_jax.data.prompts import Prompt, load_prompts
from dera_jax.data.recast import recast
from dera_jax.experiments.presets import find_preset, presets, sweep_defaults
from dera_jax.results.reading import read_rows
from dera_jax.rewards.registry import parse_rewards
from dera_jax.strengths import parse_strengths
from scripts.reproduce import __main__ as reproduce
from scripts.reproduce.smoke import exchange

NAMES = ["xsum-t5-small-ppo", "tldr-t5-large-pg", "tldr-t5-large-dpo", "zephyr-7b"]


class Parsed(BaseException):
    """Ends a command, which would tell of an exception."""


@pytest.fixture
def parse(monkeypatch):
    """What gives the options that a command line's own parser reads.

    Training commands go on to where they would load something, so what they refuse is refused.
    """
    real = cli.Parser.parse_args

    def parse(words):
        assert words[:2] == ["python", "-m"]
        found = []

        def read(self, args=None, namespace=None):
            found.append(real(self, args, namespace))
            if words[2].startswith("eval."):
                raise Parsed
            return found[0]

        def stop():
            raise Parsed

        with monkeypatch.context() as patch:
            patch.setattr(cli.Parser, "parse_args", read)
            patch.setattr(cli, "announce_devices", stop)
            prompts = [Prompt(n, "x") for n in range(512)]
            patch.setattr(dera_jax.data.prompts, "read_prompts", lambda *_: (prompts, Dropped()))
            patch.setattr(dera_jax.rewards.registry, "parse_rewards", lambda _: parse_rewards("length:1:2"))
            with pytest.raises(Parsed):
                importlib.import_module(f"dera_jax.commands.{words[2].split('.')[1]}").main(words[3:])
        return found[0]

    return parse


def printed(capsys, *words):
    assert reproduce.main(["--print", *words]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_every_printed_command_is_one(name, capsys, parse, tmp_path, monkeypatch):
    lines = printed(capsys, f"--preset={name}", f"--work={tmp_path}/made")
    assert not list(tmp_path.iterdir())  # nothing has run
    made = set()
    for line in lines:
        words = shlex.split(line) if line and not line.startswith("#") else []
        if words[:2] == ["python", "-c"]:
            compile(words[2], "step", "exec")
            made.add(words[2].split("Path('")[1].split("'")[0])
        elif words[:2] == ["python", "-m"]:
            args = parse(words)
            # What a command reads of the work is made by one before it.
            for value in (str(v) for key, v in vars(args).items() if key != "out"):
                for path in value.removeprefix("model:").split(","):
                    if path.startswith(f"{tmp_path}/work") and "/results/" not in path:
                        assert any(path == folder or path.startswith(f"{folder}/") for folder in made), line
            if words[2] == "eval.sweep":
                parse_strengths(args.lambda_)
                if args.reward and not args.reward.startswith("model:"):
                    parse_rewards(args.reward)
            made.add(str(getattr(args, "out", None)))
        else:
            assert not words or words[0] == "unxz"
    kept = {step.folder for step in find_preset(name).experiment.measurements()}
    assert {f"{tmp_path}/made/{folder}" for folder in kept} <= made
    # What comes last is of what was measured.
    for line in find_preset(name).after:
        for word in shlex.split(line):
            if word.startswith("{results}/"):
                assert word.removeprefix("{results}/").removesuffix("/rows.jsonl.xz") in kept


def test_numbers_are_the_papers():
    known = {name: preset.experiment for name, preset in presets().items()}
    assert list(known) == NAMES
    xsum, pg, dpo, zephyr = known.values()
    assert {e.beta for e in known.values()} == {0.1}
    assert xsum.strengths == tuple(n / 5 for n in range(11)) and xsum.reference.options["max_steps"] == 15_000
    betas = [float(e.aligned(s).options["beta"]) for e in (pg, dpo) for s in (0.5, 2 / 3, 2, 5, 10)]
    assert betas == pytest.approx([0.2, 0.15, 0.05, 0.02, 0.01] * 2)
    assert pg.reference == dpo.reference  # trained once
    assert dpo.training.options["learning_rate"] == 3e-6 and dpo.training.options["batch_size"] == 64
    assert [(s, zephyr.aligned(s).options["beta"]) for s, _ in zephyr.trials()] == [(0.5, "0.2")]
    assert (zephyr.reference, zephyr.aligned()) == (
        "HuggingFaceH4/mistral-7b-sft-beta",
        "HuggingFaceH4/zephyr-7b-beta",
    )
    for preset in presets().values():
        for word in ("Hardware:", "Memory:", "Expected:", "Ours:"):
            assert word in preset.record


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What all presets share: data, and the model that two of them start from."""
    return tmp_path_factory.mktemp("presets")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_at_toy_size(name, work, capsys):
    words = [f"--preset={name}", "--smoke", f"--work={work}/work", f"--out={work}/results"]
    assert reproduce.main(words) == 0
    capsys.readouterr()
    dera = work / "results" / name / "dera-seed=0"
    rows = read_rows(dera)
    assert len({row["prompt_id"] for row in rows}) == 4 and {0.0, 1.0} < {row["lambda"] for row in rows}
    retrained = [run for run in dera.parent.glob("retrained*") if run.is_dir()]
    assert len(retrained) == 1 and {row["lambda"] for row in read_rows(retrained[0])} == {1.0}
    strength = float(retrained[0].name.split("-")[1])
    assert {row["beta"] for row in read_rows(retrained[0])} == {0.1 / strength}
    identity = read_json(dera / "manifest.json")["identity"]
    if name == "zephyr-7b":
        assert identity["quantization"] == ["nf4", "nf4"] and {row["turn"] for row in rows} == {0, 1}
        assert identity["decode"]["top_k"] == 50 and identity["decode"]["top_p"] == 0.95
        assert rows[0]["prompt"][0]["role"] == "user"
        assert max(row["kl_to_reference"] for row in rows) > 0
        assert (dera.parent / "combined-2" / "rows.jsonl.xz").exists()
    else:
        assert all(row["prompt"].startswith("summarize: ") for row in rows)
    assert reproduce.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.strip().endswith(" 0 missing")


def test_sweep_takes_a_presets_decoding(tmp_path):
    args = _arguments(make_parser(), ["--preset=zephyr-7b"])
    assert (args.reference, args.quantize) == ("HuggingFaceH4/mistral-7b-sft-beta", "nf4")
    assert (args.temperature, args.top_k, args.top_p, args.max_new_tokens) == (0.7, 50, 0.95, 256)
    assert args.num_prompts == 80 and args.beta == 0.1 and args.lambda_.startswith("0,0.2,")
    write_text(tmp_path / "config.json", json.dumps({"preset": "zephyr-7b", "top-k": 7, "temperature": 0}))
    args = _arguments(
        make_parser(), [f"--config={tmp_path}/config.json", "--temperature=0.5", "--lambda=1/3"]
    )
    assert (args.top_k, args.temperature, args.top_p, args.lambda_) == (7, 0.5, 0.95, "1/3")
    models = ["--reference=a", "--aligned=b", "--prompts=c.jsonl"]
    args = _arguments(make_parser(), ["--preset=tldr-t5-large-dpo", *models])
    assert args.aligned == "b" and args.num_prompts == 1000 and args.reward is None
    assert "reward" not in sweep_defaults("tldr-t5-large-pg")  # a model that it trains
    assert "prompts" not in sweep_defaults("xsum-t5-small-ppo")


@pytest.mark.parametrize(
    "words, told",
    [
        (["--preset=zephyr"], "unknown preset 'zephyr'; known: xsum-t5-small-ppo, tldr-"),
        (["--preset=xsum-t5-small-ppo", "--reference=a"], "expected --aligned, --prompts, which it makes"),
    ],
)
def test_sweep_refuses(words, told, capsys):
    from dera_jax.commands.sweep import main

    assert main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, told",
    [
        (["--preset=zephyr"], "unknown preset 'zephyr'; known: "),
        (["--preset=zephyr-7b", "gold-pg"], "expected no experiment beside it, found gold-pg"),
        (["--preset=zephyr-7b", "--instead=x"], "--instead: expected NAME=OTHER, found 'x'"),
        (["--print"], "--print has a meaning only with --preset"),
    ],
)
def test_reproduce_refuses(words, told, capsys):
    assert reproduce.main(words) == 2
    assert told in capsys.readouterr().err


def test_other_data_and_models_instead(capsys):
    lines = printed(capsys, "--preset=xsum-t5-small-ppo", "--instead=hf:EdinburghNLP/xsum:train=my.parquet",
                    "--instead=google-t5/t5-small=my/t5")  # fmt: skip
    commands = [line for line in lines if line.startswith("python")]
    assert "data='\"'\"'my.parquet'\"'\"'" in commands[0]
    assert not any("xsum:train" in line or "google-t5" in line for line in commands)
    assert any("--model=my/t5" in line for line in commands)


def test_exchange_goes_as_deep_as_there_are_steps():
    experiment = find_preset("tldr-t5-large-pg").experiment
    changed = exchange(experiment, {"google-t5/t5-large": "other"})
    (reward,) = (step for step in changed.training.needs() if step.command == "train.reward")
    assert reward.options["model"].options["model"] == "other"
    assert exchange(experiment, {}) == experiment


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_recast_fills_templates(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    data = write_lines(
        tmp_path / "a.jsonl",
        {"document": "A long article", "info": {"post": "p"}, "refs": ["r", "s"], "chat": chat, "n": 3},
        {"document": "B", "info": {"post": "q"}, "refs": ["t"], "chat": chat, "n": 4},
    )
    templates = {
        "prompt": "summarize: {document:.6}", "completion": "{{{info[post]}}}", "last": "{refs[0]}!",
        "messages": "{chat}", "id": "{n}", "kind": "news",
    }  # fmt: skip
    recast(tmp_path / "new/out", data, **templates)
    first, second = (json.loads(line) for line in (tmp_path / "new/out/data.jsonl").read_text().splitlines())
    assert first == {
        "prompt": "summarize: A long", "completion": "{p}", "last": "r!", "messages": chat, "id": 3,
        "kind": "news",
    }  # fmt: skip
    assert second["prompt"] == "summarize: B"
    recast(tmp_path, data, first="1", prompt="{document}", id="{n}")
    assert [p.prompt_id for p in load_prompts(str(tmp_path / "data.jsonl"))] == [3]


@pytest.mark.parametrize(
    "template, told",
    [
        ("{body}", r"a\.jsonl:2: no field 'body', which prompt='\{body\}' asks for; found text, none, list"),
        ("x {list[4]}", r"a\.jsonl:2: no field 'list\[4\]'"),
        ("{none}", r"a\.jsonl:2: no field 'none'"),
        ("{text.__class__}", r"a\.jsonl:2: no field 'text\.__class__'"),
        ("{list:.3}", r"a\.jsonl:2: prompt="),
        ("{text", r"^prompt='\{text': "),
    ],
)
def test_recast_refuses_and_writes_nothing(template, told, tmp_path):
    one = {"text": "t", "none": "n", "list": "abcdef", "body": "b", "text.__class__": "c"}
    two = {"text": "t", "none": None, "list": [1]}
    if "list[" in template:
        one["list"] = [0, 1, 2, 3, 4]
    data = write_lines(tmp_path / "a.jsonl", one, two)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/data.jsonl").write_text("before")
    with pytest.raises(ValueError, match=told):
        recast(tmp_path / "out", data, prompt=template)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.jsonl"]
    assert (tmp_path / "out/data.jsonl").read_text() == "before"


def test_recast_asks_for_a_template(tmp_path):
    with pytest.raises(ValueError, match="expected a template"):
        recast(tmp_path, "toy")
