"""Files from anybody: ordinary ones only, JSON of the expected type only; written whole, as the user's umask says."""

import os
import stat
from typing import NotRequired, TypedDict

import pytest

from dera_jax import files


class Named(TypedDict):
    name: str
    sizes: NotRequired[list[float]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"name": 1e999}', "beyond the largest number"),
        ('{"name": NaN}', "NaN is no JSON number"),
        ('{"name": [1]}', "at name: expected a text, found a list"),
        ('{"name": "a", "sizes": [1, null]}', "at sizes[1]: expected a number, found null"),
        ('{"name": "a", "sizes": [1%s]}' % ("0" * 400), "at sizes[0]: number out of range"),
        ("{}", "object missing required field name"),
        ("null", "expected an object, found null"),
        ("\x00\x00", "not JSON"),
    ],
)
def test_json_of_another_type_is_refused_in_one_line(tmp_path, text, told):
    path = tmp_path / "a\x1b.json"
    path.write_text(text)
    with pytest.raises(ValueError) as failure:
        files.read_json(path, Named)
    line = str(failure.value)
    assert told in line and "a\\x1b.json" in line and "\n" not in line and "\x1b" not in line


def test_json_of_the_expected_type_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "\\ud800", "sizes": [1, 2.5], "more": {"b": null}}')
    assert files.read_json(tmp_path / "a.json", Named) == {
        "name": "\ud800", "sizes": [1, 2.5], "more": {"b": None},
    }  # fmt: skip


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="expected a file, found a pipe or a device"):
            files.read_json(path)


def test_files_have_the_rights_of_the_users_umask(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_bytes(tmp_path / "a", b"1")
        os.umask(0o002)
        files.write_bytes(tmp_path / "b", b"1")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o600, 0o664]


def test_a_lock_never_follows_a_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="cannot lock"):
        files.lock_folder(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept"


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    for name in (
        ".rows.jsonl.123.tmp",
        files.temporary_path(tmp_path / "manifest.json").name,
        "a.tmp",
        ".lock",
    ):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tmp", ".lock"}
