"""The serving bench: its clients time what comes, both servers answer in full and are gone in the end."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dera_jax import load_policies
from dera_jax.commands.bench import main
from dera_jax.commands.process import endings
from dera_jax.performance.bench import load, serving, serving_lines, sides, timing
from dera_jax.policies.save import save_policy
from tests.support import tiny

# So many that answers would end early, were they not disabled.
TINY = tiny.TINY | {"eos_token_id": list(range(1, 49))}
STRENGTHS = serving.STRENGTHS


@pytest.fixture
def started(monkeypatch):
    """Servers that were started."""
    found, start = [], subprocess.Popen

    def keep(*args, **named):
        process = start(*args, **named)
        if process.args[0] == sys.executable:
            found.append(process)
        return process

    monkeypatch.setattr(serving.subprocess, "Popen", keep)
    return found


@pytest.mark.slow
def test_all_sides_make_what_was_asked_and_nothing_runs_on(tmp_path, monkeypatch, capsys, started):
    pytest.importorskip("torch")
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    policies = sides.random_policies(tmp_path / "random", TINY)
    for policy, name in zip(policies, ("reference", "aligned"), strict=True):
        save_policy(policy, tmp_path / name)
    models = [f"--{name}={tmp_path / name}" for name in ("reference", "aligned")]
    words = ["--serve", "--shape=none", "--rows=1,2", "--new-tokens=16", "--repeats=1"]
    assert main([*models, *words, f"--out={tmp_path / 'out.json'}"]) == 0
    report, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert not {"decode", "share", "sft"} & report.keys() and report["versions"]["torch"]
    assert [result["rows"] for result in report["serve"]] == [1, 2]
    for result in report["serve"]:
        assert result["requests"] == result["rows"] * serving.REQUESTS
        assert result["tokens"] == dict.fromkeys(
            ("offline", "ours", "short", "busy", "torch"), result["requests"] * 16
        )
        seconds = {name: figures["values"][0] for name, figures in result["seconds"].items()}
        for side, key in (("ours", "serve"), ("short", "short"), ("busy", "busy")):
            assert result[f"{key}_to_offline"]["values"] == [seconds["offline"] / seconds[side]]
        assert result["times_torch"]["values"] == [seconds["torch"] / seconds["ours"]]
        speeds = {name: figures["values"] for name, figures in result["tokens_per_second"].items()}
        assert speeds == {name: [result["requests"] * 16 / each] for name, each in seconds.items()}
        for name, figures in result["latency"].items():
            (turn,) = figures["turns"]
            assert {kind: figures[kind] for kind in turn} == turn
            assert 0 < figures["first"]["p50"] <= figures["whole"]["p50"] <= figures["whole"]["p99"]
            assert figures["whole"]["p99"] <= seconds[name]
        assert str(result["torch_threads"]["chosen"]) in result["torch_threads"]["seconds"]
        assert f"{result['rows']:3} clients, {result['requests']} requests of 16 tokens at" in printed
    assert printed.count("× offline (target ≥ 0.9)") == printed.count("× torch's\n") == 2
    # One server on torch, and one of ours for each number of rows.
    assert len(started) == 5 and all(process.poll() is not None for process in started)


def test_clients_ask_for_mixed_strengths_in_turns(monkeypatch, tmp_path):
    """And offline the same prompts have the same strengths."""
    asked, decoded = [], []

    @contextmanager
    def server(folder, rows, steps=16):
        yield f"ours, {steps} steps"

    def run(address, clients):
        asked.append((address, clients))
        return 2.0, [load.Served(0.5, 1.0, 16) for each in clients for _ in each]

    def complete(policies, requests, rows, new_tokens, draw):
        decoded.append((requests, rows))
        return [[0] * new_tokens] * len(requests)

    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(serving, "our_server", server)
    monkeypatch.setattr(serving, "run_clients", run)
    monkeypatch.setattr(serving, "complete_all", complete)
    config = timing.BenchConfig(new_tokens=16, repeats=2)
    result = serving.bench_serve(load_policies(), tmp_path, 5, config, None, lambda line: None)
    assert "times_torch" not in result and "torch" not in serving_lines.LINES["serve"](result)
    assert result["tokens_per_second"]["ours"]["values"] == [80.0, 80.0]
    assert [address for address, _ in asked] == ["ours, 16 steps", "ours, 4 steps", "ours, 16 steps"] * 3
    assert len(decoded) == 3 and [len(each) for each in asked[-1][1]] == [1] * 10
    _, clients = asked[-2]
    requests, rows = decoded[-1]
    assert rows == 5 and [len(each) for each in clients] == [2] * 5
    flat = [each[turn] for turn in range(2) for each in clients]
    assert [(q.prompt, q.lambda_) for q in flat] == [(r.prompt.tokens[0], r.lambda_[0]) for r in requests]
    assert [q.lambda_ for q in flat] == [*STRENGTHS, *STRENGTHS[:2]] and (STRENGTHS[0], STRENGTHS[-1]) == (
        0,
        2,
    )
    assert len({q.prompt for q in flat}) == 10
    monkeypatch.setattr(serving, "run_clients", lambda *_: (1.0, [load.Served(0.5, 1.0, 15)] * 10))
    with pytest.raises(RuntimeError, match=r"^ours made \[150\] tokens in a turn, not 160$"):
        serving.bench_serve(load_policies(), tmp_path, 5, config, None, lambda line: None)


def test_folders_of_servers_have_no_eos(tmp_path):
    policies = load_policies()
    assert all(policy.eos_ids and policy.tokenizer.eos_token for policy in policies)
    serving.save_endless(policies, tmp_path)
    served = load_policies(str(tmp_path / "reference"), str(tmp_path / "aligned"))
    assert [policy.eos_ids for policy in served] == [(), ()]
    assert json.loads((tmp_path / "aligned/config.json").read_text())["eos_token_id"] is None
    assert policies[0].tokenizer.eos_token


def test_percentiles_are_numpys():
    random = np.random.default_rng(0)
    answers = [
        load.Served(*np.sort(random.random(2)).tolist(), tokens=int(n)) for n in random.integers(2, 99, 37)
    ]
    found = load.latencies(answers)
    expected = {
        "first": [a.first for a in answers],
        "whole": [a.whole for a in answers],
        "per_token": [(a.whole - a.first) / (a.tokens - 1) for a in answers],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == {"p50": np.median(values), "p99": pytest.approx(np.quantile(values, 0.99))}
    # Of a single token there is none after the first.
    assert load.Served(1.0, 1.0, 1).per_token == 0.0


@contextmanager
def streaming(events, status=200):
    """Gives the address of a server whose answers are events, a number of seconds or data; and what it was asked."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for event in events:
                if isinstance(event, float):
                    time.sleep(event)
                else:
                    self.wfile.write(
                        f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
                    )

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()


def piece(text):
    return {"choices": [{"index": 0, "text": text}]}


USAGE = {"choices": [], "usage": {"completion_tokens": 9}}


def test_clients_take_the_time_of_the_first_text_and_of_the_end():
    events = [0.05, piece(""), 0.15, piece("a"), piece("b"), 0.2, piece("c"), USAGE, "[DONE]"]
    question = load.Question((3, 4), 0.5, 9)
    with streaming(events) as (address, bodies):
        seconds, answers = load.run_clients(address, [[question] * 2] * 3)
    assert len(answers) == 6 and all(answer.tokens == 9 for answer in answers)
    for answer in answers:
        assert 0.2 <= answer.first <= answer.whole - 0.2
        assert answer.per_token == (answer.whole - answer.first) / 8
    # Clients ask side by side, each for one answer after the other.
    assert 0.8 <= seconds < sum(answer.whole for answer in answers)
    assert bodies == [question.body()] * 6
    assert bodies[0]["prompt"] == [3, 4] and bodies[0]["dera"] == {"lambda": 0.5} and bodies[0]["stream"]


@pytest.mark.parametrize(
    ("events", "status", "said"),
    [
        ([piece("a"), {"error": {"message": "out of memory"}}, "[DONE]"], 200, "out of memory"),
        ([{"error": "busy"}], 429, "a server answered 429"),
        ([piece("a"), USAGE], 200, "no whole answer: the stream broke off"),
        (["{"], 200, "no whole answer"),
    ],
)
def test_an_answer_that_is_none_is_an_error(events, status, said):
    with streaming(events, status) as (address, _), pytest.raises(ValueError, match=said):
        load.run_clients(address, [[load.Question((3,), 0.5, 9)]])


def test_a_server_that_is_not_there_and_one_that_says_nothing(monkeypatch):
    with streaming([]) as (address, _):
        pass
    with pytest.raises(ValueError, match=r"no whole answer: .*refused"):
        load.run_clients(address, [[load.Question((3,), 0.5, 9)]])
    monkeypatch.setattr(load, "SILENCE", 0.1)
    with streaming([0.5]) as (address, _), pytest.raises(ValueError, match="no whole answer: timed out"):
        load.run_clients(address, [[load.Question((3,), 0.5, 9)]])


@pytest.mark.parametrize("server", ["ours", "plain"])
def test_a_server_without_its_models_says_why_in_one_line(server, tmp_path, started):
    given = serving.our_server(tmp_path, 1) if server == "ours" else serving.plain_server(tmp_path, "cpu")
    if server == "plain":
        pytest.importorskip("torch")
    with (
        pytest.raises(ValueError, match=r"^(eval\.serve|the server on torch) did not start: .*") as raised,
        given,
    ):
        pass
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    assert started[0].poll() is not None


def running(code, tmp_path):
    return serving._running("a server", [sys.executable, "-c", code], tmp_path / "log")


def test_a_server_that_is_never_ready_is_given_up(tmp_path, started, monkeypatch):
    monkeypatch.setattr(serving, "READY", 0.2)
    with (
        pytest.raises(ValueError, match=r"^a server was not ready after 0\.2 s: it said nothing$"),
        running("import time; time.sleep(60)", tmp_path),
    ):
        pass
    assert started[0].poll() == -signal.SIGTERM


def test_a_server_that_does_not_end_is_killed(tmp_path, started, monkeypatch):
    monkeypatch.setattr(serving, "END", 0.2)
    monkeypatch.setenv("DERA_API_KEY", "secret")
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('loading'); print('at http://127.0.0.1:123', os.environ.get('DERA_API_KEY'), flush=True)\n"
        "time.sleep(60)"
    )
    with pytest.raises(KeyError), running(code, tmp_path) as address:
        assert address == "http://127.0.0.1:123" and "None" in (tmp_path / "log").read_text()
        raise KeyError
    assert started[0].poll() == -signal.SIGKILL


def test_a_process_that_is_told_to_end_puts_away_what_it_has(capsys):
    left, before = [], signal.getsignal(signal.SIGTERM)

    @endings.command
    def command(argv):
        with endings.stopped_by_exceptions():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                left.append(argv)

    assert command([]) == endings.TERMINATED and left == [[]]
    assert capsys.readouterr().err == "terminated\n" and signal.getsignal(signal.SIGTERM) == before


def test_what_cannot_be_measured_is_told_before_anything_runs(monkeypatch, capsys, tmp_path):
    for words, said in {
        "--serve --train": "expected one of --train, --schedule and --serve, found --train and --serve",
        "--serve --sections=decode": "--sections: expected some of serve, got 'decode'",
    }.items():
        assert main(words.split()) == 2
        assert capsys.readouterr().err == f"error: {said}\n"
    monkeypatch.setattr(serving_lines, "find_spec", lambda name: None if name == "fastapi" else name)
    assert main(["--serve", f"--out={tmp_path / 'out.json'}"]) == 2
    assert capsys.readouterr().err == "error: --serve needs fastapi: pip install 'dera_jax[serve]'\n"
    assert not list(tmp_path.iterdir())
