"""Checkpoints: bit for bit, whole or not at all, damage found, any sharding, safe with donation."""

import errno
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dera_jax.training.checkpoints
from dera_jax.training.checkpoints import Checkpoints, checksum
from tests.support.processes import ROOT, environment


class State(NamedTuple):
    params: dict
    opt_state: Any
    key: jax.Array
    step: Any


def make_state(seed: int = 0) -> State:
    """Returns a state as training has it: masked Adam, schedules, empty states, keys, every type."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "w": jax.random.normal(keys[0], (33, 8)),
        "layers": [{"b": jax.random.normal(keys[1], (5,), jnp.bfloat16)}, {"none": None}],
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        "ids": jax.random.randint(keys[2], (3, 2), -(2**31), 2**31 - 1),
        "empty": jnp.zeros((0, 3)),
        "flags": jnp.array([True, False]),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))
    opt_state = optimizer.init({"w": params["w"]})
    return State(params, opt_state, jax.random.key_data(keys[3]), jnp.int32(7 + seed))


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def saved(folder, *steps, keep=2):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"offset": step})


def restored(folder, like=None):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(make_state() if like is None else like)


@pytest.mark.parametrize("like", [make_state, lambda: shapes(make_state())], ids=["arrays", "shapes"])
def test_a_state_comes_back_bit_for_bit(tmp_path, like):
    state = make_state(1)
    facts = {"offset": 12, "mean": 0.1, "name": "é", "list": [1, None]}
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(3, state, facts)
        facts["offset"] = 13  # after the call: too late to be saved
        step, again, read = checkpoints.restore(like())
    assert (step, read) == (3, {**facts, "offset": 12})
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert bits(again) == bits(state)
    assert jax.tree.map(lambda x: (x.dtype, x.shape), again) == jax.tree.map(
        lambda x: (x.dtype, x.shape), state
    )


def test_typed_keys_and_numbers(tmp_path):
    state = {"key": jax.random.key(3), "step": 5, "rate": 0.5}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        _, again, _ = checkpoints.restore(state)
    assert jax.random.uniform(again["key"]) == jax.random.uniform(state["key"])
    assert (int(again["step"]), float(again["rate"])) == (5, 0.5)


def test_the_newest_stay_and_a_rewound_training_removes_its_future(tmp_path):
    saved(tmp_path, 1, 2, 9, 10, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["10", "9"]
    saved(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["10", "9"]
    saved(tmp_path, 5)
    assert os.listdir(tmp_path) == ["5"]
    assert restored(tmp_path)[0] == 5


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The very next step overwrites the buffers that are being written."""
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    state = {str(i): jnp.arange(1 << 20, dtype=jnp.float32) + i for i in range(8)}
    expected = bits(state)
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(3):
            mine = jax.block_until_ready(jax.tree.map(jnp.copy, state))
            checkpoints.save(step, mine, {})
            for _ in range(3):
                mine = update(mine)
            jax.block_until_ready(mine)
            assert checkpoints.restore(mine)[0] == step
            assert bits(checkpoints.restore(mine)[1]) == expected
        mine = update(copy := jax.tree.map(jnp.copy, state))
        assert jax.tree.leaves(copy)[0].is_deleted()
        assert bits(checkpoints.restore(copy)[1]) == expected  # a donated array still has a shape


def test_saving_goes_on_beside_the_training(tmp_path, monkeypatch, capsys):
    entered = dera_jax.training.checkpoints._write_record

    def slow(*args):
        time.sleep(0.5)
        entered(*args)

    monkeypatch.setattr(dera_jax.training.checkpoints, "_write_record", slow)
    state = {str(i): jnp.ones((1 << 20,)) for i in range(16)}
    with Checkpoints(tmp_path) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(1, state, {})
        call = time.perf_counter() - start
        checkpoints.wait()
        whole = time.perf_counter() - start
    with capsys.disabled():
        print(f" [64 MiB: save() took {call:.3f} s of {whole - 0.5:.3f} s]", end="")
    assert call < 0.5 < whole


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    saved(folder, 1, 2)
    return folder


def damage(path, kind):
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        place = random.Random(str(path.name)).randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])


@pytest.mark.parametrize("kind", ["missing", "cut", "flipped"])
def test_damage_anywhere_is_found_and_the_one_before_restored(two, tmp_path, capfd, kind):
    files = [path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file()]
    files = [path for path in files if (two / path).stat().st_size or kind == "missing"]
    assert len(files) > 6
    for file in files:
        folder = tmp_path / "copy"
        shutil.copytree(two, folder)
        damage(folder / file, kind)
        step, state, facts = restored(folder)
        err = capfd.readouterr().err
        assert (step, facts, bits(state)) == (1, {"offset": 1}, bits(make_state(1))), file
        assert err.startswith("CHECKPOINT: damaged (step 2: "), err
        assert str(file.relative_to("2")) in err
        assert err.endswith("; going on from step 1\n") and err.count("\n") == 1, err
        shutil.rmtree(folder)


def test_training_goes_on_past_a_damaged_checkpoint(two, tmp_path, capfd):
    for step in (2, 3):  # saved where the damaged one is, and after it
        folder = tmp_path / str(step)
        shutil.copytree(two, folder)
        damage(folder / "2" / "record.json", "cut")
        assert restored(folder)[0] == 1
        saved(folder, step)
        capfd.readouterr()
        step_again, state, _ = restored(folder)
        assert (step_again, bits(state)) == (step, bits(make_state(step)))
        assert capfd.readouterr().err == ""


def test_nothing_whole_is_nothing(two, tmp_path, capfd):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / step / "state")
    assert restored(tmp_path) is None
    assert capfd.readouterr().err.endswith("going on from step 0\n")


def test_a_wrong_state_in_whole_files_is_found(two, tmp_path, capfd):
    """As if the arrays had changed on their way to the disk: files and record agree, but not the sums."""
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(two / "1" / "state", tmp_path / "2" / "state")
    record = dera_jax.training.checkpoints.read_json(two / "2" / "record.json")
    record.pop("sha256")
    dera_jax.training.checkpoints._write_record(tmp_path / "2", record)
    assert restored(tmp_path)[0] == 1
    assert "is not what was saved" in capfd.readouterr().err


def test_another_structure_is_refused(two):
    state = make_state()
    other = state.params | {"w": jnp.zeros((33, 9))}
    with pytest.raises(ValueError, match=r"2 is of another .* \.params\['w'\]: float32\[33, 8\].*\[33, 9\]$"):
        restored(two, state._replace(params=other))
    with pytest.raises(ValueError, match=r"\.params\['nan'\]: float32\[4\], .*\['w'\]|\['nan'\]"):
        restored(two, state._replace(params={k: v for k, v in state.params.items() if k != "nan"}))
    with pytest.raises(ValueError, match=r"step: int32\[\], expected was nothing$"):
        restored(two, state._replace(step=None))
    with pytest.raises(ValueError, match="bfloat16"):
        restored(two, state._replace(key=state.key.astype(jnp.bfloat16)))


def test_what_cannot_be_saved(tmp_path):
    (tmp_path / "file").touch()
    with (
        Checkpoints(tmp_path / "file") as checkpoints,
        pytest.raises(ValueError, match=r"cannot save in .*file: "),
    ):
        checkpoints.save(1, make_state(), {})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError):
        checkpoints.save(1, make_state(), {"loss": float("nan")})
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_a_save_that_fails_in_the_background_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    saved(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"cannot save in .*No space left"):
        patch.setattr(dera_jax.training.checkpoints, "_write_record", full)
        saved(tmp_path, 2)
    assert restored(tmp_path)[0] == 1
    saved(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, capfd):
    """What a file may hold stands for what the disk has left."""
    saved(tmp_path, 1)
    capfd.readouterr()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(ValueError) as failure, Checkpoints(tmp_path) as checkpoints:
        state = make_state()._replace(params={"w": jnp.arange(2.0**16)})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limit[1]))
            checkpoints.save(2, state, {})
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(failure.value) == f"cannot save in {tmp_path}: {os.strerror(errno.EFBIG)}"
    assert "Traceback" not in capfd.readouterr().err and restored(tmp_path)[0] == 1
    saved(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def numpy_checksum(words: np.ndarray) -> int:
    def mix(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x

    return sum(mix(int(word) ^ mix(i)) for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "int8", "float16"])
def test_checksum_is_its_equation(dtype):
    array = jax.random.normal(jax.random.key(0), (5, 3, 7)).astype(dtype)
    words = np.asarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    assert int(checksum(array)) == numpy_checksum(words)


def test_checksum_sees_a_flipped_bit_and_a_swap():
    array = jnp.arange(64, dtype=jnp.uint32).reshape(8, 8)
    flipped = [array.at[i, j].set(array[i, j] ^ (1 << (i + j))) for i in range(8) for j in range(8)]
    sums = {int(checksum(one)) for one in [array, array.T, array[::-1], array.at[0, 0].set(2**31), *flipped]}
    assert len(sums) == 4 + 64


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
import jax
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
