"""A mesh over several processes: they take the step of one.

The processes run `python -m tests.devices.test_two_processes MESH`.
"""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dera_jax.devices import placement, start
from dera_jax.devices.mesh import parse_mesh
from dera_jax.models.trees import flatten
from tests.support.processes import ROOT, environment, free_port
from tests.support.tiny_models import (
    OPTIMIZER,
    SMALL,
    assert_close,
    make_step,
    random_batch,
    random_params,
)


def process(text):
    """Prints this process's view of two training steps, its rows told by `local_rows`."""
    start.start_processes()
    config, mesh, batch = SMALL, parse_mesh(text), random_batch()
    params = placement.shard_flat(random_params(config), mesh)
    rows = placement.local_rows(mesh, len(batch.tokens))
    fed = placement.shard_batch((jax.tree.map(lambda a: a[rows], batch), np.float32(0.7)), mesh)
    for ours, other in zip(*map(jax.tree.leaves, (fed[0], placement.shard_rows(batch, mesh))), strict=True):
        assert ours.shape == other.shape == (len(batch.tokens), other.shape[1])
        for one, two in zip(ours.addressable_shards, other.addressable_shards, strict=True):
            np.testing.assert_array_equal(one.data, two.data)
    places = placement.like_params(OPTIMIZER, params, mesh)
    state = jax.jit(OPTIMIZER.init, out_shardings=places)(params)
    whole = NamedSharding(mesh, P())
    kept = jax.tree.map(lambda a: a.sharding, (params, state))
    step = jax.jit(make_step(config), out_shardings=(*kept, whole, whole))
    params, state, value, gradients = step(params, state, *fed)
    _, _, second, _ = step(params, state, *fed)
    told = {path: np.asarray(g).tolist() for path, g in flatten(gradients).items()}
    print(json.dumps([rows.tolist(), float(value), float(second), told]))


@pytest.mark.slow
@pytest.mark.parametrize("text, devices", [("data:2,model:2", 2), ("model:2", 1)])
def test_two_processes_take_the_step_of_one(text, devices, tmp_path):
    command = [sys.executable, "-m", "tests.devices.test_two_processes", text]
    address, started = f"127.0.0.1:{free_port()}", []
    outs = [tmp_path / "0", tmp_path / "1"]
    for number, path in enumerate(outs):
        numbers = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        # Files, not pipes: a full pipe would keep one from the barrier where the other waits.
        with path.open("w") as out:
            env = environment(devices, **numbers)
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=env))
    try:
        codes = [each.wait(timeout=120) for each in started]
    finally:
        for each in started:
            each.kill()
    told = [path.read_text() for path in outs]
    assert codes == [0, 0], told
    params, batch, beta = random_params(SMALL), random_batch(), np.float32(0.7)
    step = jax.jit(make_step(SMALL))
    after = step(params, OPTIMIZER.init(params), batch, beta)
    second = step(*after[:2], batch, beta)[2]
    fed = []
    for out in told:
        rows, *values, gradients = json.loads(
            next(line for line in out.splitlines() if line.startswith("[["))
        )
        fed.append(rows)
        np.testing.assert_allclose(values, [after[2], second], rtol=1e-5)
        assert_close({path: np.array(g) for path, g in gradients.items()}, flatten(after[3]), 1e-4)
    assert fed == ([[0, 1, 2, 3], [4, 5, 6, 7]] if "data" in text else [[*range(8)]] * 2)


@pytest.mark.parametrize(
    "given",
    [
        ("127.0.0.1:1234", None, None),
        (None, 2, 0),
        ("127.0.0.1:1234", 2, 2),
        ("127.0.0.1:1234", 0, 0),
        ("127.0.0.1", 2, 0),
        ("127.0.0.1:port", 2, 0),
        (":1234", 2, 0),
        ("127.0.0.1:1234", 2, -1),
    ],
)
def test_processes_that_cannot_be(given, monkeypatch):
    for name in start.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"^processes: expected a coordinator host:port, [^\n]*; (got|missing) [^\n]*$"
    ):
        start.start_processes(*given)
    start.start_processes()  # nothing asked, nothing done


def test_a_cluster_that_is_none(monkeypatch):
    def fail(*_, **__):  # as JAX does where no cluster is found
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"^--coordinator=auto: found no cluster here [^\n]*$"):
        start.start_processes("auto")


if __name__ == "__main__":
    process(sys.argv[1])
