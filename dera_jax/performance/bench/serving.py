"""What serving costs: clients of `eval.serve` against the same requests decoded offline, and on torch.

The two servers are processes of their own, and both are up while the sides take turns; whoever has no
turn waits. The servers read folders of the pair without EOS, so every answer has the same length.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from dera_jax.common.json_files import write_json
from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.request import Request
from dera_jax.performance.bench.load import Question, Served, latencies, run_clients
from dera_jax.performance.bench.sides import complete_all, make_prompt, without_eos
from dera_jax.performance.bench.starts import DERA
from dera_jax.performance.bench.timing import BenchConfig, Progress, interleave, ratio, spread, timed
from dera_jax.policies.families import read_config
from dera_jax.policies.policy import Policy, find_eos_ids
from dera_jax.policies.save import save_policy
from dera_jax.policies.tokenizers import load_tokenizer

STRENGTHS = tuple(2 * i / 7 for i in range(8))
"""One request has the first, the next one the second, and so on."""
REQUESTS = 2
"""Of each client in a turn, one after the other."""
OFFLINE_TARGET = 0.9
"""Least share of the offline throughput that clients get while no row is idle."""
STEPS = {"ours": 16, "short": 4}
"""Of a chunk: as it is by default, and where answers are to come sooner."""
READY, END = 900.0, 30.0
"""Seconds that a server has until it can be asked, and until it has ended; then it is killed."""
PLAIN = "dera_jax.performance.bench.plain_server"
NAMES = ("reference", "aligned")
ENDS = {
    "config.json": "eos_token_id",
    "generation_config.json": "eos_token_id",
    "tokenizer_config.json": "eos_token",
    "special_tokens_map.json": "eos_token",
}
"""Where a model's folder names EOS."""


def save_endless(policies: Sequence[Policy], folder: Path) -> None:
    """Writes a pair as two folders whose completions only their length ends.

    Raises:
      ValueError: a tokenizer has an EOS that no file of it names.
    """
    for policy, name in zip(policies, NAMES, strict=True):
        place = folder / name
        save_policy(policy, place)
        for file, field in ENDS.items():
            if (place / file).exists():
                settings = json.loads((place / file).read_text(encoding="utf-8"))
                write_json(place / file, settings | {field: None})
        if found := find_eos_ids(place, read_config(place), load_tokenizer(place)):
            raise ValueError(f"{policy.name}: expected EOS {found} to be gone with the settings that name it")


@contextmanager
def our_server(folder: Path, rows: int, steps: int = STEPS["ours"]) -> Iterator[str]:
    """Gives the address of `eval.serve` with the pair of a folder, in the block."""
    models = [f"--{name}={folder / name}" for name in NAMES]
    settings = ["--port=0", f"--rows={rows}", f"--steps={steps}", f"--queue={max(256, rows)}"]
    with _running(
        "eval.serve", [*DERA, "serve", *settings, *models], folder / f"ours-{steps}.log"
    ) as address:
        yield address


@contextmanager
def plain_server(folder: Path, device: str) -> Iterator[str]:
    """Gives the address of the opponent with the pair of a folder, in the block."""
    command = [sys.executable, "-m", PLAIN, *(str(folder / name) for name in NAMES), device]
    with _running("the server on torch", command, folder / "plain.log") as address:
        yield address


@contextmanager
def _running(name: str, command: Sequence[str], log: Path) -> Iterator[str]:
    """Gives the address that a server tells, and ends it after the block."""
    # A key of the user's would be asked for; and of a GPU, this process has taken its share already.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    env.pop("DERA_API_KEY", None)
    # Into a file: a pipe that nobody reads would stop it once it is full.
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield _address(name, process, log)
    finally:
        process.terminate()
        try:
            process.wait(END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(name: str, process: subprocess.Popen, log: Path) -> str:
    """Waits for the address in a server's log.

    Raises:
      ValueError: it has ended, or takes too long.
    """
    end = time.monotonic() + READY
    while time.monotonic() < end:
        ended = process.poll() is not None
        told = log.read_text(encoding="utf-8", errors="replace")
        if ended:
            raise ValueError(f"{name} did not start: {_last_line(told)}")
        if found := re.search(r"http://127\.0\.0\.1:\d+\b(?=.*\n)", told):
            return found[0]
        time.sleep(0.05)
    raise ValueError(f"{name} was not ready after {READY:g} s: {_last_line(told)}")


def _last_line(told: str) -> str:
    lines = told.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


class Turns:
    """The turns of a server's clients, and all their answers."""

    def __init__(self, address: str, clients: Sequence[Sequence[Question]]):
        """Takes what each client asks in a turn."""
        self._address, self._clients = address, clients
        self.answers: list[list[Served]] = []
        """Of every turn."""

    def __call__(self) -> float:
        """Has a turn, and returns its seconds."""
        seconds, answers = run_clients(self._address, self._clients)
        self.answers.append(answers)
        return seconds

    def latencies(self) -> dict:
        """Returns the percentiles of all turns together and of each; the first one compiled and is left out."""
        kept = self.answers[1:]
        together = latencies([answer for turn in kept for answer in turn])
        return together | {"turns": [latencies(turn) for turn in kept]}

    @property
    def tokens(self) -> set[int]:
        """What the answers of a turn had together: one number, unless turns differ."""
        return {sum(answer.tokens for answer in turn) for turn in self.answers}


def bench_serve(
    policies: Sequence[Policy],
    folder: Path,
    clients: int,
    config: BenchConfig,
    theirs: str | None = None,
    progress: Progress = print,
) -> dict:
    """Returns throughput and latency of our server with as many rows as clients, and the ratios.

    Of clients that ask one thing after the other, with either of `STEPS`; and, as `busy`, where all is asked at once,
    so that no row waits for a client.

    Args:
      policies: the pair, which decodes offline.
      folder: of the same pair, as `save_endless` has written it.
      theirs: address of the opponent; None leaves it out.

    Raises:
      ValueError: a server that does not start or answer.
      RuntimeError: an answer of another length than was asked for.
    """
    policies, new_tokens = without_eos(policies), config.new_tokens
    prompts = [make_prompt(policies, new_tokens, number) for number in range(clients * REQUESTS)]
    requests = [Request(p, 0, (STRENGTHS[n % len(STRENGTHS)],)) for n, p in enumerate(prompts)]
    questions = [Question(r.prompt.tokens[0], r.lambda_[0], new_tokens) for r in requests]
    each = [questions[client::clients] for client in range(clients)]
    tokens: dict[str, set[int]] = {"offline": set()}

    def offline() -> None:
        made = complete_all(policies, requests, clients, new_tokens, draw=complete_unshared)
        tokens["offline"].add(sum(map(len, made)))

    progress("starting eval.serve")
    with our_server(folder, clients) as ours, our_server(folder, clients, STEPS["short"]) as short:
        turns = {
            "ours": Turns(ours, each),
            "short": Turns(short, each),
            "busy": Turns(ours, [[question] for question in questions]),
        }
        if theirs:
            turns["torch"] = Turns(theirs, each)
        seconds = interleave({"offline": timed(offline), **turns}, config.repeats, progress)
    asked = len(requests) * new_tokens
    tokens |= {name: turn.tokens for name, turn in turns.items()}
    for name, found in tokens.items():
        if found != {asked}:
            raise RuntimeError(f"{name} made {sorted(found)} tokens in a turn, not {asked}")
    result: dict[str, Any] = {
        "model": policies[-1].name,
        "rows": clients,
        "requests": len(requests),
        "new_tokens": new_tokens,
        "strengths": list(STRENGTHS),
        "tokens": {name: asked for name in tokens},
        "seconds": seconds,
        "tokens_per_second": {
            name: spread([asked / s for s in figures["values"]]) for name, figures in seconds.items()
        },
        "latency": {name: turn.latencies() for name, turn in turns.items()},
        "steps": STEPS,
        "serve_to_offline": ratio(seconds["offline"], seconds["ours"]),
        "short_to_offline": ratio(seconds["offline"], seconds["short"]),
        "busy_to_offline": ratio(seconds["offline"], seconds["busy"]),
        "target": OFFLINE_TARGET,
    }
    if theirs:
        result["torch_threads"] = threads_of(theirs)
        result["times_torch"] = ratio(seconds["torch"], seconds["ours"])
    return result


def threads_of(address: str) -> dict:
    """Returns the number of threads that the opponent has chosen, and the seconds with each."""
    with urlopen(f"{address}/health", timeout=60) as answer:
        return json.load(answer)["threads"]
