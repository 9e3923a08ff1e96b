"""The training loop: what it promises of numbers that are none, of stops, and of runs that go on."""

import json
import os
import signal
from dataclasses import asdict, replace

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.commands.options import cli
from dera_jax.training import runs
from dera_jax.training.config import RunConfig
from dera_jax.training.log import read_metrics
from dera_jax.training.loop import Method, Preempted, fit
from dera_jax.training.optimization import Terms
from dera_jax.training.sft import sft_method
from tests.support.tiny_trainings import CONFIG, EXAMPLES, train


def test_training_stops_at_nan_and_names_step_and_tensor(tmp_path):
    def loss(params, given, batch):
        values = params["calm"].sum() + params["wild"] * batch
        return Terms(values, jnp.ones_like(values))

    data = np.float32([1, 1, np.nan, 1, 1])
    method = Method(
        {"calm": jnp.ones(2), "wild": jnp.ones(2)}, loss, lambda _, step: (np.full(2, data[step]), {})
    )
    with pytest.raises(
        ValueError, match=r"stopped at step 2: loss is nan, first in the gradient of wild \(1 of 2"
    ):
        train(method, tmp_path, replace(CONFIG, max_steps=5), RunConfig(save_steps=1))
    assert len(read_metrics(tmp_path)) == 2
    # What was saved is from before.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(tiny, tmp_path):
    config, run = replace(CONFIG, max_steps=9), RunConfig(save_steps=2, eval_steps=3)

    def method():
        return sft_method(tiny, EXAMPLES, config, held_out=EXAMPLES[:5], sample=lambda _: [{"text": "a"}])

    straight, _ = train(method(), tmp_path / "straight", config, run)
    out = tmp_path / "stopped"
    for stop in (1, 3, 5, 6, 8):
        for step, _, _ in fit(method(), config, run, out):
            if step == stop:
                break
    params, _ = train(method(), out, config, run)
    assert all(np.array_equal(straight[name], params[name]) for name in params)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert len((out / "speed.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("sent", "raised"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_run_after_the_step_with_everything_saved(sent, raised, tiny, tmp_path):
    before = signal.getsignal(sent)
    with pytest.raises(raised, match="saved after step 2"):
        for step, _, _ in fit(sft_method(tiny, EXAMPLES, CONFIG), CONFIG, RunConfig(), tmp_path):
            if step == 1:
                os.kill(os.getpid(), sent)
    assert signal.getsignal(sent) is before
    assert (tmp_path / "checkpoints" / "2").is_dir() and len(read_metrics(tmp_path)) == 2


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path, capsys):
    config, run = replace(CONFIG, max_steps=6), RunConfig(save_steps=2)
    straight, _ = train(sft_method(tiny, EXAMPLES, config), tmp_path / "straight", config, run)
    out = tmp_path / "damaged"
    for step, _, _ in fit(sft_method(tiny, EXAMPLES, config), config, run, out):
        if step == 5:
            break
    largest = max(
        (out / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    params, metrics = train(sft_method(tiny, EXAMPLES, config), out, config, run, tell=cli.tell)
    assert "damaged" in (said := capsys.readouterr().err) and "going on from step 2" in said
    assert all(np.array_equal(straight[name], params[name]) for name in params)
    assert [m["step"] for m in metrics] == list(range(6))


def test_nobody_is_told_who_does_not_ask(tiny, tmp_path, capsys):
    straight, grown = (replace(CONFIG, max_steps=steps) for steps in (1, 2))
    for config in (straight, grown):
        train(sft_method(tiny, EXAMPLES, config), tmp_path, config)
    assert capsys.readouterr() == ("", "")
    (tmp_path / "checkpoints" / "2" / "record.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"^CHECKPOINT: damaged \(step 2: .*; going on from step 1$"):
        train(sft_method(tiny, EXAMPLES, grown), tmp_path, grown)
    assert capsys.readouterr() == ("", "")


def test_one_run_at_a_time(tmp_path):
    refused = pytest.raises(
        ValueError, match=rf"^another run is writing to {tmp_path / 'out'}( \(process \d+\))?$"
    )
    with runs.alone(tmp_path / "out"), refused, runs.alone(tmp_path / "out"):
        pass
    with runs.alone(tmp_path / "out"):
        pass


def test_what_another_run_is_told_of_one_that_is_there(tmp_path):
    def settings(method="dpo", data="a", hash_="1", beta=0.1, **more):
        start = {"model": data, "fingerprint": more.pop("fingerprint", "f")}
        return {"method": method, "start": start, "data": data, "examples_hash": hash_, "beta": beta} | more

    def ask(there, now, *given):
        told = there | {"train_config": asdict(CONFIG), "finished": True}
        (tmp_path / "manifest.json").write_text(json.dumps(told))
        (tmp_path / "model.safetensors").touch()
        return runs.is_finished(tmp_path, now, CONFIG, given)

    assert ask(settings(), settings(data="elsewhere"))
    old = settings()
    del old["examples_hash"]
    assert ask(old, settings())
    with pytest.raises(ValueError, match=r"another method \(\"dpo\" there, \"sft\" now\); choose"):
        ask(settings(), settings("sft", beta=0.2))
    with pytest.raises(
        ValueError, match=r"other settings \(beta: 0.1 there, 0.2 now; a: nothing there, 1 now\)"
    ):
        ask(settings(), settings(beta=0.2, a=1), "beta")
    with pytest.raises(ValueError, match=r"settings \(start\.model: "):
        ask(settings(fingerprint="random-0"), settings(data="b", fingerprint="random-0"))
