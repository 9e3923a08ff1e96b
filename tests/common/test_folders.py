"""What is said of a path that is no file."""

import os

import pytest

from dera_jax.common.folders import no_such_file
from dera_jax.policies.steering import read_steering
from dera_jax.rewards.text import read_lexicon

KINDS = {
    "folder": "found a folder",
    "pipe": "expected a file, found a pipe or a device",
    "link": "expected a file, found a link to gone, which is not there",
    "nothing": "no such file",
}


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    path = tmp_path / "x.safetensors"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("gone")}
    make.get(request.param, lambda: None)()
    return path, KINDS[request.param]


def test_it_is_told_what_is_there(place):
    path, told = place
    assert no_such_file(path).endswith(told)
    for read in (read_steering, lambda path: read_lexicon(str(path), "lexicon:x")):
        with pytest.raises(ValueError, match=told):
            read(path)
