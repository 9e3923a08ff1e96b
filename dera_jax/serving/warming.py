"""What is compiled before the first client comes."""

import threading
import time

from dera_jax.decoding.request import Request
from dera_jax.serving.jobs import Failed, Finished, Job, Progress
from dera_jax.serving.protocol import CompletionBody
from dera_jax.serving.service import Service


def warm_up(service: Service, tokens: int = 32) -> float:
    """Answers a short prompt, and returns the seconds that it took.

    Args:
      tokens: of the answer, at most.

    Raises:
      Exception: that the models fail with.
    """
    start = time.perf_counter()
    body = CompletionBody(prompt="Hello", max_tokens=tokens, temperature=1.0, seed=0)
    ended: list[Exception | None] = []
    done = threading.Event()

    def tell(event: Progress | Finished | Failed) -> None:
        if not isinstance(event, Progress):
            ended.append(event.error if isinstance(event, Failed) else None)
            done.set()

    request: Request = service.reader.completions(body).requests[0]
    service.engine.start()
    service.engine.submit([Job(request, "", tell)])
    done.wait()
    if ended[0]:
        raise ended[0]
    return time.perf_counter() - start
