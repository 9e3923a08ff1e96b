"""Fixtures of the commands' tests: what calls a command, and a sweep that has ended."""

import random
import shutil
import sys
from pathlib import Path

import pytest

from dera_jax import save_policy
from dera_jax.commands import sweep

TEXTS = ["Once upon a time", "Lily had a dog", "Tom saw"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="session")
def aligned(pair, tmp_path_factory):
    """A folder with the second policy of the pair."""
    folder = tmp_path_factory.mktemp("models") / "aligned"
    save_policy(pair[1], folder)
    return folder


@pytest.fixture(scope="session")
def models(toy, aligned):
    return [f"--reference={toy}", f"--aligned={aligned}"]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return f"--prompts={path}"


@pytest.fixture(scope="session")
def base(models, prompts):
    """The options of all sweeps here, of one shape, so that little is compiled."""
    return [*models, prompts, "--max-new-tokens=24", "--rows=4", "--lambda=0,0.5,1"]


@pytest.fixture(scope="session")
def finished(base, tmp_path_factory):
    """A folder that a sweep has completed; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert sweep.main([*base, f"--out={out}", "--reward=length:24:30", "--beta=0.1"]) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def call(capsys, monkeypatch):
    """A command called as a process would be: words to exit code, standard output and error."""
    monkeypatch.setenv("COLUMNS", "100")

    def called(main, *words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def refused(call):
    """A command that must fail before it starts: words to the one line it says."""

    def called(main, *words):
        code, out, err = call(main, *words)
        lines = [line for line in err.splitlines() if not line.startswith(("devices: ", "loaded "))]
        assert (code, out, len(lines)) == (2, "", 1), err
        assert lines[0].startswith("error: ")
        return lines[0]

    return called


@pytest.fixture
def fails(call):
    """A command that fails while it runs: words to the last line it says."""

    def called(main, *words):
        code, _, err = call(main, *words)
        assert code == 2 and "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("error: ") and err.count("error: ") == 1
        return last

    return called


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's module in the folder that the command is called from."""
    name = f"mine_{random.randrange(10**9)}"
    (tmp_path / f"{name}.py").write_text(
        "import jax.numpy as jnp\n"
        "def mixture(logits, weights, state):\n"
        "    return jnp.einsum('mrv,rm->rv', logits, weights, precision='highest'), state\n"
        "def nan(logits, weights, state):\n"
        "    return logits[0] * jnp.nan, state\n"
        "def few(completions):\n"
        "    return [1.0]\n"
        "def words(completions, **columns):\n"
        "    return [float(len(text.split())) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name
