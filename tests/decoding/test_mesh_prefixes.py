"""Prefix caching on meshes says what one device says that reads every prompt anew.

Runs as `python -m tests.decoding.test_mesh_prefixes` with eight devices made of this machine's processor.
"""

import json
import subprocess
import sys

import pytest

from dera_jax.decoding.prefix_cache import PrefixCache
from dera_jax.devices.mesh import parse_mesh
from tests.support.conversations import TURNS, chatting, talk
from tests.support.on_meshes import adapted_pair, compare, on_mesh, plain_pair
from tests.support.processes import ROOT, environment

MESHES = ("data:8", "data:2,model:4", "model:8")
PROMPTS = [{"id": n, "turns": [f"{n}. {TURNS[0]}", *TURNS[1:]]} for n in range(4)]
STRENGTHS = ((0.0,), (1.0,))


def check(make, text, **how):
    """Returns rows that part from one device's, tokens before that, how far apart they are, and what was read."""
    pair = chatting(make())
    how = {"strengths": STRENGTHS, "rows": 32, **how}
    expected, _ = talk(pair, PROMPTS, None, **how)
    found, usage = talk(on_mesh(pair, parse_mesh(text)), PROMPTS, PrefixCache(most=1.0), **how)
    assert found.keys() == expected.keys()
    changed, tokens, apart = compare(found.values(), [expected[key] for key in found])
    told = {"changed": changed, "tokens": tokens, "apart": apart}
    return told | {"read": usage.prompt_tokens_read, "cached": usage.prompt_tokens_cached}


def main():
    for text in MESHES:
        print(json.dumps({"mesh": text} | check(plain_pair, text)), flush=True)
    print(json.dumps({"mesh": "lora"} | check(adapted_pair, "data:4,model:2", share=False)), flush=True)


@pytest.mark.slow
def test_prefixes_on_meshes_are_those_of_one_device():
    command = [sys.executable, "-m", "tests.decoding.test_mesh_prefixes"]
    ended = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["mesh"] for line in lines] == [*MESHES, "lora"]
    for line in lines:
        print(line)
        assert line["apart"] < 1e-5 and line["changed"] == 0, line
        # Every part of `data` has a copy of each entry, so that the store holds fewer of them.
        assert line["cached"] > (0.3 if "data" in line["mesh"] else 1) * line["read"] > 0, line


if __name__ == "__main__":
    main()
