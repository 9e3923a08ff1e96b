"""Metrics told to services, by modules that stand for theirs."""

import json
import sys

import pytest

from dera_jax.commands import sft
from dera_jax.policies.policy import TOY
from dera_jax.training.log import RunLog

STUB = """
calls = []
fail = None

def told(name):
    def call(*args, **given):
        calls.append((name, args, given))
        if fail == name:
            raise RuntimeError("the service is\\ndown")
    return call

init, log, finish = map(told, ("init", "log", "finish"))
"""


@pytest.fixture(params=["wandb", "trackio"])
def service(request, tmp_path, monkeypatch):
    """A module of the service's name, and that name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{request.param}.py").write_text(STUB)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    module = __import__(request.param)
    yield module
    sys.modules.pop(request.param, None)


@pytest.fixture
def words(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a cat", "completion": " sat"}\n' * 4)
    given = [f"--model={TOY / 'reference'}", f"--data={tmp_path / 'data.jsonl'}", f"--out={tmp_path / 'out'}"]
    return [*given, "--batch-size=2", "--max-steps=3", "--lora-r=1"]


def named(service, name):
    return [(args, given) for called, args, given in service.calls if called == name]


@pytest.mark.slow
def test_a_service_is_told_what_metrics_jsonl_is(service, words, tmp_path, call, monkeypatch):
    name = service.__name__
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    code, _, err = call(sft.main, *words, f"--report-to={name}")
    assert code == 0, err
    ((_, begun),) = named(service, "init")
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    told = [args[0] | {"step": given["step"]} for args, given in named(service, "log")]
    assert told == lines and len(lines) == 3
    assert len(named(service, "finish")) == 1
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert begun["project"] == "mine" and begun["name"].startswith("out")
    assert (
        begun["config"]["train_config"] == manifest["train_config"]
        and begun["config"]["data"] == manifest["data"]
    )
    # What is reported where decides nothing.
    assert "already trained" in call(sft.main, *words)[1]


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_service_that_fails_ends_nothing(service, fails, words, call):
    service.fail = fails
    code, _, err = call(sft.main, *words, f"--report-to={service.__name__}")
    warning = f"warning: {service.__name__}: the service is; the training goes on without it"
    assert code == 0 and err.count(warning) == 1 and "Traceback" not in err
    assert len(named(service, "log")) == {"init": 0, "log": 1, "finish": 3}[fails]


def test_a_run_that_goes_on_is_the_same_to_the_service(service, tmp_path):
    name, sizes = service.__name__, {}
    with RunLog(tmp_path, 9, name) as log:
        log.write(0, {}, 1.0, {"loss": float("nan"), "reward": 1.0})
        sizes = log.sizes()
    with RunLog(tmp_path, 9, name, sizes) as log:
        log.write(1, {}, 1.0, {"loss": 1.0})
    with RunLog(tmp_path, 9, name):
        pass
    first, second, anew = (given["id" if name == "wandb" else "name"] for _, given in named(service, "init"))
    assert first == second != anew
    assert [args[0] for args, _ in named(service, "log")] == [{"reward": 1.0}, {"loss": 1.0}]
    with RunLog(tmp_path, 9, name, writes=False):  # of several processes one tells
        assert len(named(service, "init")) == 3


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_that_is_absent_is_told_first(name, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # as wandb leaves one behind
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert f"--report-to={name} needs {name}: pip install {name}" in refused(
        sft.main, *words, f"--report-to={name}"
    )
