"""`python -m eval.serve` as a process: ready in one line, ended without a loss, refused in one line."""

import json
import re
import signal
import subprocess
import sys

import pytest
import requests

from dera_jax.commands import serve
from tests.support.processes import ROOT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lambda=0,1"], "--lambda: expected one strength, found 2"),
        (["--lambda=3"], "--lambda: expected 0 to 2, found 3.0"),
        (["--lambda-range=2:0"], "--lambda-range: expected two finite numbers in order, found 2 and 0"),
        (["--lambda-range=2"], "--lambda-range: expected two numbers such as 0:2, found '2'"),
        (["--lambda-range=0:nan"], "--lambda-range: expected two finite numbers in order"),
        (["--port=99999"], "--port: expected"),
        (["--queue=0"], "--queue: expected"),
        (["--rows=none"], "--rows: expected a whole number"),
        (["--served-model-name=a@1"], "--served-model-name: expected a name without @, found 'a@1'"),
        (["--beta=-1"], "--beta: expected"),
        (["--draft=aligned", "--rule=nothing"], "--rule"),
        (["--rule=power", "--lambda=1.5"], "power:p=1 averages: expected strengths of at least 0"),
        (["--steps=3"], "--steps: expected one of 1, 2, 4, 8, 16, found 3"),
    ],
)
def test_what_is_wrong_is_one_line(options, said, capsys):
    assert serve.main(options) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_port_that_is_taken(capsys):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert serve.main([f"--port={other.getsockname()[1]}"]) == 2
    assert "is in use" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_when_what_it_has_begun_is_done(ending):
    command = [sys.executable, "-m", "eval.serve", "--port=0", "--rows=2", "--lambda=1/2"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            told = _told_until_the_end(process, ending)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert told[-1] == b"[DONE]" and "Traceback" not in error
    choices = [json.loads(each)["choices"][0] for each in told[:-1]]
    # The first piece counts too: an answer may be over with its first token.
    ended = [choice["index"] for choice in choices if choice["finish_reason"] is not None]
    assert sorted(ended) == list(range(24))
    assert process.returncode in (143, -signal.SIGTERM, 130, -signal.SIGINT)


def _told_until_the_end(process, ending):
    """Returns the events of a stream of 24 answers, whose server is told to end at the first."""
    line = process.stdout.readline()
    found = re.fullmatch(r"toy at (http://127\.0\.0\.1:\d+) \(λ = 1/2, 2 rows\)\n", line)
    assert found, line
    assert "strength (λ)" in requests.get(found[1], timeout=60).text
    body = {"prompt": "Once", "max_tokens": 240, "n": 24, "temperature": 5.0, "stream": True}
    with requests.post(f"{found[1]}/v1/completions", json=body, stream=True, timeout=60) as answer:
        lines = answer.iter_lines()
        told = [next(lines)]
        process.send_signal(ending)
        # Not comments, which keep a slow stream's connection open.
        return [event.removeprefix(b"data: ") for event in [*told, *lines] if event.startswith(b"data: ")]
