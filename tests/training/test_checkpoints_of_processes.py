"""Checkpoints of other processes: any number of devices, several processes, a killed one."""

import random
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from tests.support.processes import ROOT, environment
from tests.support.training_states import restored

SHARDED = """
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dera_jax.training.checkpoints import Checkpoints
n = len(jax.devices())
mesh = jax.make_mesh((max(n // 4, 1), min(n, 4)), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
w = jax.random.normal(jax.random.key(0), (64, 32))
state = {"w": put(w, "data", "model"), "b": put(w[0].astype(jnp.bfloat16), "model"), "count": put(jnp.int32(4)),
         "both": put(w * 2, ("data", "model")), "empty": put(jnp.zeros((0, 8)), None, "model")}
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    if sys.argv[2] == "save":
        checkpoints.save(n, state, {"devices": n})
        state = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    else:
        step, again, facts = checkpoints.restore(state)
        assert step == facts["devices"] == int(sys.argv[3])
        for name in state:
            for one, other in zip(again[name].addressable_shards, state[name].addressable_shards, strict=True):
                assert np.asarray(one.data).tobytes() == np.asarray(other.data).tobytes(), name
            assert again[name].sharding == state[name].sharding, name
"""


def run(script, *args, devices=1):
    command = [sys.executable, "-W", "error", "-c", script, *map(str, args)]
    env = environment(devices)
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 8)])
def test_any_number_of_devices(tmp_path, before, after):
    for verb, devices in (("save", before), ("restore", after)):
        with run(SHARDED, tmp_path, verb, before, devices=devices) as process:
            out, err = process.communicate()
        assert (process.returncode, out, err) == (0, "", "")  # and not a word of orbax's


PROCESSES = """
import sys, jax
jax.distributed.initialize(sys.argv[4], 2, int(sys.argv[5]))
"""


@pytest.mark.slow
def test_two_processes_save_one_state(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for verb in ("save", "restore"):
        both = [run(PROCESSES + SHARDED, tmp_path, verb, 8, address, i, devices=4) for i in range(2)]
        for process in both:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err


LOOP = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from dera_jax.training.checkpoints import Checkpoints
like = {"w": jnp.zeros((200_000,)), "step": jnp.int32(0)}
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    step, state, facts = checkpoints.restore(like) or (0, like, {"step": 0})
    assert int(state["step"]) == step == facts["step"] and bool((state["w"] == step).all())
    print(step, flush=True)
    while True:
        step += 1
        state = {"w": state["w"] * 0 + step, "step": jnp.int32(step)}
        checkpoints.save(step, state, {"step": step})
        print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_training_always_resumes_from_one_of_its_last_two_saves(tmp_path, capfd):
    chance, begun = random.Random(3), 0
    for _ in range(6):
        with run(LOOP, tmp_path) as process:
            # `save(n)` returns when n - 1 is whole: of the steps begun, at most the last is lost.
            resumed = int(process.stdout.readline())
            assert begun - 1 <= resumed <= begun + 1
            for _ in range(chance.randrange(2, 12)):
                begun = int(process.stdout.readline())
            time.sleep(chance.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)
            out, err = process.communicate()
        begun = max([begun, *map(int, out.split())])
        assert err == ""  # nothing is ever damaged
    step, state, _ = restored(tmp_path, {"w": jnp.zeros((200_000,)), "step": jnp.int32(0)})
    assert begun - 1 <= step <= begun + 1
    assert float(state["w"].min()) == float(state["w"].max()) == int(state["step"]) == step
    assert capfd.readouterr().err == ""
