"""Where a server listens, and the package that it is made of."""

import errno
import socket


def listen(host: str, port: int) -> socket.socket:
    """Returns what listens at an address; clients wait there until the models are ready.

    Raises:
      ValueError: it is in use, or none of this machine.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened at ({error.strerror})"
        raise ValueError(f"--host={host} --port={port}: {why}") from None
    return listening


def uvicorn_module():
    """Returns the web server's module.

    Raises:
      ValueError: it, or another package of the extra, is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import sse_starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'dera_jax[serve]'") from None
    return uvicorn
