"""Programs and patterns that come with models, run where they can be stopped.

They may loop for ever or fill the memory. They run in another process (`untrusted_worker`), which is ended when
they take too much and stays for the next request where they do not.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Lock

import jinja2
import markupsafe

from dera_jax.common.shown import shown
from dera_jax.policies import untrusted_worker

TOLD = {
    "memory": f"takes more than {untrusted_worker.MEMORY >> 20} MiB of memory",
    "length": f"writes more than {untrusted_worker.LONGEST} characters",
    "time": f"takes more than {untrusted_worker.SECONDS:g} s of computing",
}
"""What may not be done."""


class Refusal(ValueError):
    """It is broken, or says itself that it does not take what it is given."""


class OverLimit(ValueError):
    """It takes too much; nothing else is to be tried with it."""


def ask(**request) -> list:
    """Returns what the other process finds; `untrusted_worker` says what may be asked.

    Raises:
      Refusal: with what is said.
      OverLimit: too much time or memory, or too long a text.
      ValueError: it failed in another way.
    """
    answer = _WORKER.ask(json.dumps(request, default=_placeholder).encode() + b"\n")
    if "found" in answer:
        return answer["found"]
    if answer["kind"] in TOLD:
        raise OverLimit(TOLD[answer["kind"]])
    failure = shown(" ".join(answer["failure"].split()), 300)
    raise (Refusal if answer["kind"] == "refused" else ValueError)(failure)


def _placeholder(value: object) -> str:
    return f"<{type(value).__name__}>"


class _Worker:
    """The other process; started when it is needed, again after it was ended, and once in each fork."""

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self.lock = Lock()

    def ask(self, request: bytes) -> dict:
        """Returns the answer to a request; one that ends the process tells of the limit."""
        with self.lock:
            process = self._started()
            try:
                line = self._exchange(process, request)
            except BaseException:  # what comes later would get this request's answer
                self.stop()
                raise
            if line.endswith(b"\n"):
                return json.loads(line)
            code = process.wait()
            self.stop()
        if -code in (signal.SIGXCPU, signal.SIGALRM):
            return {"kind": "time"}
        return {"kind": "other", "failure": f"the process that runs it ended with code {code}"}

    def stop(self) -> None:
        """Ends the process, if it is ours."""
        if self.process and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
        self.process = None

    def _started(self) -> subprocess.Popen:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.stop()
            self.process, self.owner = _start(), os.getpid()
        return self.process

    @staticmethod
    def _exchange(process: subprocess.Popen, request: bytes) -> bytes:
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        return process.stdout.readline()


def _start() -> subprocess.Popen:
    # Isolated, and without the user's packages: its start is short, and no module of theirs is run.
    places = dict.fromkeys(str(Path(module.__file__).parents[1]) for module in (jinja2, markupsafe))
    words = [sys.executable, "-I", "-S", untrusted_worker.__file__, *places]
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for us
        )
    except OSError as error:
        raise ValueError(f"cannot start the process that runs chat templates: {error.strerror}") from None


_WORKER = _Worker()
atexit.register(_WORKER.stop)
