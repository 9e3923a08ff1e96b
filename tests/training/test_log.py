"""A run's log: which steps compile and take long, and every step on TensorBoard, once."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.common.notes import unheard
from dera_jax.training.config import RunConfig
from dera_jax.training.log import RunLog
from dera_jax.training.loop import Method, fit
from dera_jax.training.optimization import Terms
from tests.support.tiny_trainings import CONFIG


def test_every_step_that_compiles_is_told(tmp_path, monkeypatch):
    """Batches are of several lengths: the first step is not the only one that takes long."""
    rows = (2, 2, 4, 2, 4, 1)

    def loss(params, given, batch):
        return Terms(params["w"] * batch, jnp.ones(len(batch)))

    method = Method({"w": jnp.float32(1)}, loss, lambda _, step: (np.ones(rows[step]), {}))
    told = []
    tell = RunLog.tell_compiling
    monkeypatch.setattr(RunLog, "tell_compiling", lambda log: (told.append(log.sizes()["steps"]), tell(log)))
    list(fit(method, replace(CONFIG, max_steps=len(rows)), RunConfig(save_steps=1), tmp_path))
    assert told == [0, 2, 5]


def test_the_step_that_compiles_is_not_in_the_rate(tmp_path):
    with RunLog(tmp_path, 9, tell=unheard) as log:
        log.write(0, {}, 60.0, {"loss": 1.0})
        shown = log._bar.format_dict
        assert (shown["n"], shown["initial"], log._bar.last_print_n) == (1, 1, 1) and shown["elapsed"] < 0.5
        log.write(1, {}, 1.0, {"loss": 1.0})
        assert log._bar.n == 2


def events(folder):
    """Returns the steps that TensorBoard's files tell of, those that are hidden left out."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                found = [step for step in found if step < event.step]
            elif event.HasField("summary"):
                found.append(event.step)
    return found


def test_every_step_is_on_tensorboard_at_once_and_once(tmp_path):
    pytest.importorskip("tensorboardX")
    sizes: dict = {}
    # The first is killed after its last step, and the second goes on from what was saved after step 1.
    with RunLog(tmp_path, 9, "tensorboard") as log:
        for step in range(4):
            log.write(step, {}, 1.0, {"loss": 1.0})
            assert sorted(set(events(tmp_path / "tensorboard"))) == list(range(step + 1))
            sizes = log.sizes() if step == 1 else sizes
        with RunLog(tmp_path, 9, "tensorboard", sizes) as again:
            again.write(2, {}, 1.0, {"loss": 1.0})
            steps = events(tmp_path / "tensorboard")
    assert sorted(set(steps)) == [0, 1, 2] and steps.count(2) == steps.count(0)
