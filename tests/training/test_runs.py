"""What makes a training finished, what a rerun makes of one that is not, and of files that were changed since."""

import json
import os
import shutil
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policy, save_policy
from dera_jax.commands import combine
from dera_jax.commands.options import cli
from dera_jax.policies import manifests
from dera_jax.policies.policy import TOY, with_params
from dera_jax.training import runs
from dera_jax.training.config import PPOConfig, RunConfig, TrainConfig
from dera_jax.training.log import FILES
from dera_jax.training.loop import Method, fit
from dera_jax.training.optimization import Terms
from tests.support.json_files import read

CONFIG = TrainConfig(max_steps=2, batch_size=1, learning_rate=0.1, warmup_ratio=0.0)
RUN = RunConfig(save_steps=1, eval_steps=1, save_only_model=True)
SETTINGS = {"method": "toy"}
BEST = runs.Best("eval_w")


def descent():
    """Returns a training that makes `w` smaller, and whose evaluation is `w` itself."""

    def loss(params, given, batch):
        return Terms(params["w"] * batch, jnp.ones(1))

    def evaluate(state, constants):
        return {"eval_w": float(state.params["w"])}, []

    return Method({"w": jnp.float32(1)}, loss, lambda _, step: (np.ones(1), {}), evaluate=evaluate)


@pytest.fixture(scope="module")
def toy():
    return load_policy(str(TOY / "reference"))


def save_with(toy):
    def save(params, folder, manifest):
        scaled = jax.tree.map(lambda a: a * params["w"], toy.params)
        save_policy(with_params(toy, scaled), folder, manifest)

    return save


def train(out, save):
    runs.run_training(descent(), save, CONFIG, RUN, out, SETTINGS, {}, BEST, tell=cli.tell)


@pytest.fixture
def out(tmp_path, toy):
    train(tmp_path / "out", save_with(toy))
    return tmp_path / "out"


def is_finished(out):
    return runs.is_finished(out, SETTINGS, CONFIG, tell=cli.tell)


def test_a_manifest_speaks_for_the_weights_that_lie_there(out):
    assert is_finished(out)
    for folder in (out, out / "best"):
        assert set(read(folder / "manifest.json")["files"]) == {"config.json", "model.safetensors"}
    assert read(out / "manifest.json")["best"]["step"] == 2
    # A template may be mended later.
    (out / "tokenizer_config.json").write_text("{}")
    assert is_finished(out)


@pytest.mark.parametrize(
    ("name", "act", "told"),
    [
        ("model.safetensors", lambda path: path.unlink(), "model.safetensors is missing"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(b"1"),
            "model.safetensors is not what was written",
        ),
        ("config.json", lambda path: path.write_text("{}"), "config.json is not what was written"),
    ],
)
def test_finished_files_that_have_changed_are_told_in_one_line(name, act, told, out):
    act(out / name)
    with pytest.raises(ValueError, match=rf"^{out}: was finished, but {told}; choose another --out"):
        is_finished(out)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_finished_files_that_have_changed_are_made_again_from_the_checkpoint_that_stays(
    name, toy, tmp_path, capfd
):
    go(tmp_path, save_with(toy), CONFIG)
    written = (tmp_path / name).read_bytes()
    (tmp_path / name).write_text("{}")
    assert go(tmp_path, save_with(toy), CONFIG) and not go(tmp_path, save_with(toy), CONFIG)
    assert (tmp_path / name).read_bytes() == written
    told = f"{name} is not what was written: it is made again from its last checkpoint"
    assert capfd.readouterr().err.count(told) == 1


def test_a_finished_model_without_weights_is_made_again_from_a_checkpoint(out, toy, tmp_path):
    """As older versions left it, which wrote the manifest first."""
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    manifest = read(out / "manifest.json")
    del manifest["files"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    for step, _, _ in fit(descent(), CONFIG, RUN, tmp_path / "again"):
        assert step <= 2
    for name in ("checkpoints", "metrics.jsonl", "speed.jsonl", "samples.jsonl"):
        shutil.move(tmp_path / "again" / name, out / name)
    assert not is_finished(out)
    train(out, save_with(toy))
    assert is_finished(out) and (out / "model.safetensors").read_bytes() == weights
    assert not (out / "checkpoints").exists()


def test_finished_folders_of_older_versions_stay_so(out):
    manifest = read(out / "manifest.json")
    del manifest["files"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert is_finished(out)


def test_folders_of_versions_with_fewer_settings_are_those_of_their_defaults(out):
    settings = SETTINGS | {"ppo": asdict(PPOConfig())}
    manifest = read(out / "manifest.json") | settings
    for name in runs.ADDED:
        section, _, setting = name.rpartition(".")
        del manifest[section][setting]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert runs.is_finished(out, settings, CONFIG)
    with pytest.raises(ValueError, match=r"adam_beta1: 0.9 there, 0.5 now"):
        runs.is_finished(out, settings, replace(CONFIG, adam_beta1=0.5))
    with pytest.raises(ValueError, match=r"value_warmup_steps: 0 there, 3 now"):
        runs.is_finished(out, settings | {"ppo": asdict(PPOConfig(value_warmup_steps=3))}, CONFIG)


@pytest.mark.parametrize(
    "manifest", ["[]", '{"finished": "yes"}', '{"files": [1]}', '{"best": 3}', "[" * 9999]
)
def test_a_manifest_of_other_types_is_one_line(manifest, out):
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError) as refused:
        is_finished(out)
    assert "manifest.json" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_things_are_neither_emptied_nor_waited_for(name, toy, tmp_path):
    """Data may be called samples.jsonl, and a stranger's folder may hold a link to anything."""
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    precious.write_text("precious\n")
    (out / name).write_text("precious\n")
    with pytest.raises(ValueError, match=f"already holds {name}, but no training"):
        is_finished(out)
    assert (out / name).read_text() == "precious\n"
    for put, told in ((os.mkfifo, "found a pipe"), (lambda path: path.symlink_to(precious), "found a link")):
        (out / name).unlink()
        put(out / name)
        with pytest.raises(ValueError, match=told):
            train(out, save_with(toy))
    assert precious.read_text() == "precious\n"


LONGER = replace(CONFIG, max_steps=5, lr_scheduler_type="constant")
SHORTER = replace(LONGER, max_steps=2)


def go(out, save, config, keep=True):
    """What a command does with a folder; returns whether there was anything to do."""
    if runs.is_finished(out, SETTINGS, config, tell=cli.tell):
        runs.tidy(out)
        return False
    run = replace(RUN, save_only_model=not keep)
    runs.run_training(descent(), save, config, run, out, SETTINGS, {}, BEST, tell=cli.tell)
    return True


def told_by(out, name):
    """Returns what a file of a run says, but how long it took."""
    manifest = read(out / name)
    return {key: value for key, value in manifest.items() if key != "seconds"}


@pytest.mark.parametrize("stops", ["nowhere", "at its end", "between"])
def test_more_steps_go_on_from_the_checkpoint_that_was_kept(stops, tmp_path, toy, capfd):
    straight, grown, save = tmp_path / "straight", tmp_path / "grown", save_with(toy)
    go(straight, save, LONGER)
    assert go(grown, save, SHORTER) and not go(grown, save, SHORTER)
    assert [path.name for path in (grown / "checkpoints").iterdir()] == ["2"]
    capfd.readouterr()
    if stops != "nowhere":

        def fails(params, folder, manifest):
            if (folder == grown and stops == "at its end") or (
                stops == "between" and manifest["best"]["step"] == 4
            ):
                raise KeyboardInterrupt
            save(params, folder, manifest)

        with pytest.raises(KeyboardInterrupt):
            go(grown, fails, LONGER)
        assert not read(grown / "manifest.json").get("finished")
        with pytest.raises(ValueError, match=r"train_config.max_steps: 5 there, 2 now"):
            go(grown, save, SHORTER)
    assert go(grown, save, LONGER)
    said = capfd.readouterr().err
    assert said.count("a run of 2 steps gets 5, as if it had been begun with them") == 1
    assert "going on from step 2" in said
    for name in ("model.safetensors", "metrics.jsonl", "best/model.safetensors"):
        assert (grown / name).read_bytes() == (straight / name).read_bytes(), name
    for name in ("manifest.json", "best/manifest.json"):
        assert told_by(grown, name) == told_by(straight, name)
    assert [path.name for path in (grown / "checkpoints").iterdir()] == ["5"]
    assert not go(grown, save, LONGER)


def test_a_schedule_that_hangs_on_the_steps_is_told(tmp_path, toy, capfd):
    save = save_with(toy)
    go(tmp_path, save, replace(SHORTER, lr_scheduler_type="cosine"))
    go(tmp_path, save, replace(LONGER, lr_scheduler_type="cosine"))
    assert "at the learning rates of 5 steps" in capfd.readouterr().err
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines]
    expected = [
        0.05 * (1 + np.cos(np.pi * n / total)) for n, total in zip(range(5), (2, 2, 5, 5, 5), strict=True)
    ]
    assert rates == pytest.approx(expected)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_more_steps_without_a_checkpoint_and_fewer_ones_are_refused(tmp_path, toy):
    go(tmp_path, save_with(toy), SHORTER, keep=False)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(
        ValueError, match=r"max_steps: 2 there, 5 now\); its last checkpoint is gone: --save-only-model"
    ):
        go(tmp_path, save_with(toy), LONGER)
    with pytest.raises(ValueError, match=r"max_steps: 2 there, 1 now\); choose another --out"):
        go(tmp_path, save_with(toy), replace(LONGER, max_steps=1))


def test_a_run_that_ended_after_its_last_step_yields_what_it_had(tmp_path):
    straight = [(step, figures) for step, _, figures in fit(descent(), CONFIG, RUN, tmp_path)]
    (step, state, figures), *more = fit(descent(), CONFIG, RUN, tmp_path)
    assert not more and (step, figures) == straight[-1] and float(state.params["w"]) == figures["eval_w"]


def test_a_best_model_with_other_weights_is_made_again(tmp_path, toy):
    """Killed between the weights and the manifest, in the evaluation that the newest checkpoint is of."""
    out, save = tmp_path / "out", save_with(toy)

    def killed(params, folder, manifest):
        save(params, folder, manifest)
        if manifest.get("best", {}).get("step") == 2:
            (folder / "manifest.json").write_text(json.dumps(before))
            raise KeyboardInterrupt
        before.update(read(folder / "manifest.json"))

    before: dict = {}
    with pytest.raises(KeyboardInterrupt):
        train(out, killed)
    assert manifests.find_damage(out / "best", before) and before["best"]["step"] == 1
    train(out, save)
    assert read(out / "best" / "manifest.json")["best"]["step"] == 2
    assert (out / "best" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_what_a_killed_run_left_after_its_end_goes(out):
    for left in (out / ".a.0f.tmp", out / "best" / ".b.0f.tmp" / "c", out / "checkpoints" / "2" / "state"):
        left.mkdir(parents=True)
    (out / "model.partial").touch()
    names = {path.name for path in out.iterdir()} - {".a.0f.tmp", "checkpoints", "model.partial"}
    runs.tidy(out)
    assert {path.name for path in out.iterdir()} - {".lock"} == names
    assert not any((out / "best").glob(".*"))


def test_combining_goes_on_in_a_folder_that_was_being_written_and_in_no_other(tmp_path, capsys):
    half = tmp_path / "half"
    half.mkdir()
    (half / "manifest.json").write_text('{"finished": false}')
    (half / "model.safetensors").write_bytes(b"half")
    assert combine.main([f"--out={half}", "--lambda=0.5"]) == 0
    manifest = read(half / "manifest.json")
    assert manifest["finished"] and manifests.find_damage(half, manifest) is None
    for taken in ('{"identity": {}}', '{"lambda": 1}', '{"finished": true}'):
        (half / "manifest.json").write_text(taken)
        assert combine.main([f"--out={half}", "--lambda=0.5"]) == 2
        assert "already holds a model" in capsys.readouterr().err
