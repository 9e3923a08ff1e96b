"""Records and names of checkpoints: what is not as it was written is damage, or no checkpoint."""

import jax.numpy as jnp
import pytest

from dera_jax.commands.options import cli
from dera_jax.training.checkpoints import Checkpoints, _write_record
from tests.support.json_files import read

STATE = {"w": jnp.arange(4.0)}


@pytest.fixture
def two_checkpoints(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": STATE["w"] + step}, {})
    return tmp_path


def restored(folder):
    with Checkpoints(folder, tell=cli.tell) as checkpoints:
        return checkpoints.restore(STATE)


@pytest.mark.parametrize(
    "text", ["[]", "null", "[" * 99_999, '{"facts": 1}', '{"sha256": []}', '{"files": {"a": 1}}']
)
def test_a_record_of_other_types_is_damage(text, two_checkpoints, capfd):
    (two_checkpoints / "2" / "record.json").write_text(text)
    assert restored(two_checkpoints)[0] == 1
    said = capfd.readouterr().err
    assert said == "CHECKPOINT: damaged (step 2: record.json cannot be read); going on from step 1\n"


def test_a_checkpoint_under_another_number_is_damage(two_checkpoints, capfd):
    (two_checkpoints / "1").rename(two_checkpoints / "5")
    step, state, _ = restored(two_checkpoints)
    assert step == 2 and float(state["w"][0]) == 2
    assert "damaged (step 5: it is that of step 1); going on from step 2" in capfd.readouterr().err


def test_files_that_orbax_cannot_read_are_damage_and_print_no_stack(two_checkpoints, capfd):
    """Though the record speaks for them."""
    folder = two_checkpoints / "2"
    record = read(folder / "record.json")
    del record["sha256"]
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00")
    _write_record(folder, record)
    assert restored(two_checkpoints)[0] == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "damaged (step 2: its arrays cannot be read" in said


def test_names_that_are_no_step_are_no_checkpoints(two_checkpoints):
    for name in ("03", "٤", "7.saving"):
        (two_checkpoints / name).mkdir()
    (two_checkpoints / "9").touch()
    assert restored(two_checkpoints)[0] == 2
