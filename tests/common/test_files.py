"""Files from anybody: ordinary ones only, JSON of the expected type only; written whole, as the user's umask says."""

import os
import socket
import stat
from typing import NotRequired, TypedDict

import pytest

from dera_jax.common import files, json_files, locks


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
        json_files.read_json(path, Named)
    line = str(failure.value)
    assert told in line and "a\\x1b.json" in line and "\n" not in line and "\x1b" not in line


def test_json_of_the_expected_type_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "\\ud800", "sizes": [1, 2.5], "more": {"b": null}}')
    assert json_files.read_json(tmp_path / "a.json", Named) == {
        "name": "\ud800", "sizes": [1, 2.5], "more": {"b": None},
    }  # fmt: skip


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="expected a file, found a pipe or a device"):
            json_files.read_json(path)


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match="expected a file, found a pipe or a device"):
            files.write_bytes(tmp_path / name, b"1")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_fifo()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_appended_to_is_an_ordinary_file_of_the_folder(tmp_path):
    (tmp_path / "there").write_text("a")
    for name in ("there", "new"):
        with files.open_to_append(tmp_path / name) as file:
            assert file.tell() == (name == "there")
            file.write(b"b")
    assert (tmp_path / "there").read_text() == "ab" and (tmp_path / "new").read_text() == "b"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "folder").mkdir()
    for name, told in (("pipe", "found a pipe"), ("link", "found a link"), ("folder", "Is a directory")):
        with pytest.raises(ValueError, match=told):
            files.open_to_append(tmp_path / name)
    assert (tmp_path / "there").read_text() == "ab"


def test_files_have_the_rights_of_the_users_umask(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_bytes(tmp_path / "a", b"1")
        os.umask(0o002)
        files.write_bytes(tmp_path / "b", b"1")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o600, 0o664]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_what_a_library_makes_has_the_rights_of_the_umask_too(tmp_path, umask):
    before = os.umask(umask)
    try:
        with files.staging(tmp_path / "model", "weights") as place:
            (place / "weights").write_bytes(b"1")
            (place / "weights").chmod(0o600)  # as safetensors does
            files.put(place / "weights", tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == 0o666 & ~umask
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    lock, (up, down) = locks.lock_folder(tmp_path), socket.socketpair()
    if not (child := os.fork()):
        down.close()
        up.send(b"1")
        up.recv(1)  # until the parent is done
        os._exit(0)
    up.close()
    down.recv(1)
    locks.unlock(lock)
    locks.unlock(locks.lock_folder(tmp_path))
    down.close()
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_never_follows_a_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="cannot lock"):
        locks.lock_folder(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept"


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    for name in (
        ".rows.jsonl.123.tmp",
        files.temporary_path(tmp_path / "manifest.json").name,
        "a.tmp",
        ".lock",
    ):
        (tmp_path / name).touch()
    (tmp_path / "model.partial").touch()
    with pytest.raises(KeyError), files.staging(tmp_path / "sub", "a") as place:
        raise KeyError
    assert not place.exists()
    (tmp_path / place.name / "half").mkdir(parents=True)
    (tmp_path / "sub").rmdir()
    files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tmp", ".lock"}
