"""A server under load for a long time, killed and started again now and then; run by hand.

  python -m tests.serving.soak --minutes=30
  python -m tests.serving.soak --minutes=5 --kills=3

Clients ask as in `tests.support.storms`, and again while the server is gone. It fails unless each answer is the offline
row of its request and, without kills, the server's counters are the clients' own; it prints the server's memory over
time.
"""

import argparse
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from dera_jax import load_policies
from tests.support.storms import ask_until_answered, check_answers, check_counters

ROWS = 8
BEATS = 5.0
"""Seconds between two looks at the memory."""


class Server:
    """`python -m eval.serve` of the toy pair on a port, started again when it was killed."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the process."""
        words = [sys.executable, "-m", "eval.serve", f"--port={self.port}", f"--rows={ROWS}", "--queue=10000"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kills it as nothing could resist, and starts another."""
        self.process.kill()
        self.process.wait()
        self.start()

    def resident_mib(self) -> float:
        """Returns its memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def metrics(self) -> str:
        """Returns what it has counted."""
        return requests.get(f"{self.url}/metrics", timeout=60).text


def soak(server: Server, seconds: float, kills: int, clients: int):
    """Returns what was asked and answered, how often a client had to ask again, and the memory over time."""
    end, rng, lock = time.monotonic() + seconds, random.Random(0), threading.Lock()

    def client(_) -> list:
        made = []
        while time.monotonic() < end:
            with lock:
                number = rng.randrange(2000)
            made.append(ask_until_answered(lambda: server.url, number))
        return made

    memory: list[float] = []
    with ThreadPoolExecutor(clients) as at_once:
        answers = [at_once.submit(client, number) for number in range(clients)]
        start, killed = time.monotonic(), 0
        while time.monotonic() < end:
            time.sleep(BEATS)
            if killed < kills and time.monotonic() - start > (killed + 1) * seconds / (kills + 1):
                server.kill()
                killed += 1
            memory.append(server.resident_mib())
        made = [each for answer in answers for each in answer.result()]
    return [asked for asked, _ in made], sum(tries for _, tries in made), memory


def main() -> None:
    """Runs the server and its clients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--clients", type=int, default=12)
    args = parser.parse_args()
    server = Server()
    try:
        first, _ = ask_until_answered(lambda: server.url, 0)
        asked, again, memory = soak(server, 60 * args.minutes, args.kills, args.clients)
        time.sleep(2)
        metrics = server.metrics()
    finally:
        server.process.terminate()
        server.process.wait()
    print(
        f"{len(asked)} requests, {again} asked again, {args.kills} kills; checking each against its offline row"
    )
    kinds = check_answers(load_policies(), [first, *asked], ROWS)
    if not args.kills:
        check_counters(metrics, kinds)
    tenths = [memory[int(place * (len(memory) - 1) / 10)] for place in range(11)]
    print(f"answered {dict(kinds)}; memory over time, MiB: {' '.join(f'{each:.0f}' for each in tenths)}")


if __name__ == "__main__":
    main()
