"""Other processes on this machine, as tests start them."""

import os
import socket
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def environment(devices, **more):
    # Compiling takes most of the time, whatever the programs do.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more
