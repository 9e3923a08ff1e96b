"""Checkpoints: bit for bit, whole or not at all, beside the training, safe with donation."""

import errno
import os
import resource
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dera_jax.training.checkpoints
from dera_jax.training.checkpoints import Checkpoints, checksum
from tests.support.training_states import bits, make_state, restored, saved


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


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


def test_saving_goes_on_beside_the_training(tmp_path, monkeypatch):
    """What is written waits for `save` to have returned: were it the other way round, it would wait for ever."""
    entered, returned, written = dera_jax.training.checkpoints._write_record, Event(), []

    def late(*args):
        written.append(returned.wait(60))
        entered(*args)

    monkeypatch.setattr(dera_jax.training.checkpoints, "_write_record", late)
    state = {str(i): jnp.ones((1 << 20,)) for i in range(16)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        returned.set()
        checkpoints.wait()
        assert written == [True] and checkpoints.restore(state)[0] == 1


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
