"""Other processes on this machine, as tests start them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
"""XLA's flags for programs that are compiled five times as fast as others, and run slower. Each is compiled in one
piece: pieces are for more cores than tests have, and cost more together."""


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def environment(devices, **more):
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    return os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"} | more


def run(command, *arguments, **more):
    """Starts a command by its module, with its output in pipes."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | more.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", command, *map(str, arguments)], cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def finish(process):
    """Waits for a process that is to end well."""
    said = process.communicate()
    assert process.returncode == 0, said


def wait_for_lines(path, count, process):
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.02)


def addresses(count):
    """Returns what tells each process of the others, plainly."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address = f"127.0.0.1:{free_port()}"
    return lambda number: dict(zip(names, (address, str(count), str(number)), strict=True))


def launch(words, devices, folder, count=2, tell=None):
    """Starts processes of one run, each with its output in files: a full pipe would stop one and all."""
    started, tell = [], tell or addresses(count)
    for number in range(count):
        env = environment(devices) | tell(number)
        with (folder / f"out.{number}").open("w") as out, (folder / f"err.{number}").open("w") as err:
            command = [sys.executable, "-m", *map(str, words)]
            started.append(subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=env))
    return started


def await_all(started, folder, code=0):
    """Returns what each has written on standard output and on standard error."""
    try:
        codes = [each.wait(timeout=300) for each in started]
    finally:
        for each in started:
            each.kill()
    told = [[(folder / f"{name}.{i}").read_text() for name in ("out", "err")] for i in range(len(started))]
    assert codes == [code] * len(started), told
    return told
