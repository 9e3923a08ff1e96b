"""`python -m eval.serve` as a process: ready in one line, ended without a loss, refused in one line."""

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
        (["--lambda=3"], "the default strength: expected 0 to 2, found 3"),
        (["--lambda-range=2:0"], "lambda_range: expected two finite numbers in order, found 2 and 0"),
        (["--lambda-range=2"], "--lambda-range: expected two numbers such as 0:2, found '2'"),
        (["--lambda-range=0:nan"], "lambda_range: expected two finite numbers in order"),
        (["--port=99999"], "--port: expected"),
        (["--queue=0"], "queue: expected"),
        (["--rows=none"], "--rows: expected a whole number"),
        (["--served-model-name=a@1"], "--served-model-name: expected a name without @, found 'a@1'"),
        (["--beta=-1"], "--beta: expected"),
        (["--draft=aligned", "--rule=nothing"], "--rule"),
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


@pytest.mark.slow
def test_a_server_answers_and_ends_when_it_is_told(tmp_path):
    command = [sys.executable, "-m", "eval.serve", "--port=0", "--rows=2", "--lambda=1/2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    found = re.fullmatch(r"toy at (http://127\.0\.0\.1:\d+) \(λ = 1/2, 2 rows\)\n", line)
    assert found, line + process.stderr.read()
    answer = requests.post(f"{found[1]}/v1/completions", json={"prompt": "Once", "max_tokens": 5}, timeout=60)
    assert answer.json()["dera"]["lambda"] == 0.5
    assert "strength (λ)" in requests.get(found[1], timeout=60).text
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 143, -signal.SIGTERM) and "Traceback" not in errors
