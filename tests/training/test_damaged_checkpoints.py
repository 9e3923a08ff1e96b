"""Checkpoints that are damaged, or of another state: found, and the one before restored."""

import random
import shutil

import jax.numpy as jnp
import pytest

import dera_jax.training.checkpoints
from tests.support.training_states import bits, make_state, restored, saved


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
