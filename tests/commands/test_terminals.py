"""Commands as processes of their own: Ctrl-C at any moment, streams and homes as machines have them."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dera_jax import read_rows
from dera_jax.commands import dera, sweep
from dera_jax.commands.process.streams import PLAIN
from dera_jax.common.folders import cache_folder
from dera_jax.policies.policy import TOY
from tests.support.processes import ROOT

WORDS = ["eval.sweep", "--lambda=0,1", "--num-prompts=2", "--max-new-tokens=8", "--rows=4"]
"""A small sweep of the toy pair: four rows."""


def process(words, shell=None, **more):
    """Starts `python WORDS`, with `shell` behind it, in an environment with `more` set (None: unset)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | more
    line = [sys.executable, *words]
    return subprocess.Popen(
        ["bash", "-c", f'"$@" {shell}', "bash", *line] if shell else line,
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
    )


def finished(words, shell=None, **more):
    """Returns exit code, standard output and error of a process that has ended."""
    with process(words, shell, **more) as started:
        out, error = started.communicate(timeout=300)
    assert "Traceback" not in error
    return started.returncode, out, error


# Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["dera_jax.common.spelling", "numpy", "jax._src.core", "devices: ", "loaded "]
)
def test_an_interruption_is_heard_from_the_first_instant(moment, tmp_path):
    """Python tells what it has imported, and the command what it does: the signal comes right behind."""
    words = ["-X", "importtime", "-m", *WORDS, f"--out={tmp_path / 'run'}"]
    with process(words) as started:
        for line in started.stderr:
            if line.rstrip().endswith(f" {moment}") or line.startswith(moment):
                started.send_signal(signal.SIGINT)
                break
        rest = started.stderr.read()
    said = [line for line in rest.splitlines() if not line.startswith("import time:")]
    assert started.returncode == 130 and said[-1:] == ["interrupted"] and "Traceback" not in rest


SWALLOWED = """
import gc, signal, time
from dera_jax.commands.process import interrupts
interrupts.begin()
def once(phase, info):
    gc.callbacks.remove(once)
    signal.raise_signal(signal.SIGINT)
    for _ in range(9): pass
with interrupts.raised():
    gc.callbacks.append(once)
    try:
        gc.collect()
        time.sleep(30)
    except KeyboardInterrupt:
        print("heard")
"""
DEAF = """
import hashlib, os, signal, threading
from dera_jax.commands.process import interrupts
interrupts.begin()
with interrupts.telling("all is kept"):
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as a compilation: no step of Python until it ends
"""


@pytest.mark.slow
def test_an_interruption_that_a_callback_swallows_is_said_again():
    assert finished(["-c", SWALLOWED]) == (0, "heard\n", "")


def test_an_interruption_does_not_wait_for_a_compilation():
    assert finished(["-c", DEAF]) == (130, "", "interrupted: all is kept\n")


# Streams


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_written_in_plain_letters(encoding, monkeypatch, tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as stopped:
        dera.main(["sweep", "--help"])
    assert stopped.value.code == 0
    assert sweep.main([*WORDS[1:], f"--out={tmp_path / 'run'}"]) == 0
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    there = {sign for sign in PLAIN if sign in text}
    assert there <= {sign for sign in PLAIN if sign.encode(encoding, "ignore")}
    assert ("lambda  beta/lambda" in text) == (encoding != "utf-8") and "\\u" not in text
    # Files do not depend on it.
    assert (
        "toy"
        in json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["extent"]["prompts"]
    )


def test_what_libraries_log_is_shown_as_text_from_outside(tmp_path, capfd):
    shutil.copytree(TOY / "reference", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    rope = {"rope_type": "\x1b[2J", "rope_theta": 10000.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": rope}))
    words = [f"--reference={tmp_path / 'model'}", f"--aligned={tmp_path / 'model'}", "--lambda=0"]
    assert sweep.main([*words, f"--out={tmp_path / 'run'}"]) == 2
    said = capfd.readouterr().err
    assert "\\x1b[2J" in said and "\x1b" not in said


def test_plain_letters_are_ascii():
    assert all(letters.isascii() and not sign.isascii() for sign, letters in PLAIN.items())


POSIX = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell, code, more",
    [
        (
            "",
            0,
            POSIX
            | {"MPLBACKEND": "nonsense", "XDG_CACHE_HOME": "/dev/null", "COLUMNS": "x", "TERM": None}
            | {"JAX_COMPILATION_CACHE_DIR": None},
        ),
        (">&- 2>&- <&-", 0, {}),
        ("2>/dev/full", 0, {}),
        (">/dev/full", 2, {}),
        ("2> >(head -c1 >/dev/null) | head -c1", 0, {}),
    ],
    ids=["places", "closed", "full error", "full output", "head"],
)
def test_a_sweep_is_kept_whatever_its_streams_and_places_are(shell, code, more, tmp_path):
    run = tmp_path / "run"
    ended, _, error = finished(["-m", *WORDS, f"--out={run}"], shell, **more)
    assert len(read_rows(run)) == 4 and (run / "sweep.png").exists()
    assert ended == code
    if code:
        assert error.splitlines()[-1] == "error: No space left on device"
    if "XDG_CACHE_HOME" in more:
        assert (
            error.count("warning: compiled programs are not kept: /dev/null/dera_jax: Not a directory\n") == 1
        )


# Places

HOMELESS = """
import pwd, runpy, sys
def nobody(number):
    raise KeyError(number)
pwd.getpwuid = nobody
sys.argv = ["eval.compare", *sys.argv[1:]]
runpy.run_module("eval.compare", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("home", [None, "", "gone"])
def test_help_needs_no_home(home):
    code, out, error = finished(["-c", HOMELESS, "--help"], HOME=home, XDG_CACHE_HOME=None)
    assert (code, error) == (0, "") and "dera_jax/judge in XDG_CACHE_HOME" in out


def test_the_cache_lies_where_the_standard_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert cache_folder() == tmp_path / ".cache" / "dera_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/dera_jax")
