"""The opponent of `serve`: the same pair as a plain script serves it, `transformers` behind FastAPI.

  python -m dera_jax.performance.bench.plain_server REFERENCE ALIGNED [DEVICE]

It is as good as such a script is: the mixture of `torch_decoding` with the fastest number of threads,
streamed by the streamer that comes with `transformers`. `generate` takes one prompt at one strength
from its start to its end and lets nobody join, so there is one generation at a time: a single thread
holds the models, and further requests wait for it in the order in which they came.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from transformers import AsyncTextIteratorStreamer, AutoTokenizer

from dera_jax.performance.bench.sides import LAMBDA, PROMPT_TOKENS
from dera_jax.performance.bench.timing import timed
from dera_jax.performance.bench.torch_decoding import TorchPair

SHORT = 16
"""Tokens of a run that tells the fastest number of threads."""


def make_app(pair: TorchPair, tokenizer) -> FastAPI:
    """Returns the application: completions of prompts that are ids, streamed, and the threads at /health."""
    app, worker = FastAPI(), ThreadPoolExecutor(1)
    words = np.zeros((1, PROMPT_TOKENS), int)
    # In the thread that will generate: each has threads of its own to compute with.
    threads = worker.submit(pair.choose_threads, timed(lambda: pair.generate(words, LAMBDA, SHORT))).result()

    @app.get("/health")
    async def health() -> dict:
        return {"threads": threads}

    @app.post("/v1/completions")
    async def completions(body: dict) -> StreamingResponse:
        return StreamingResponse(events(body), media_type="text/event-stream")

    async def events(body: dict) -> AsyncIterator[str]:
        streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True)

        def generate() -> int:
            try:
                ids, lambda_ = np.array([body["prompt"]]), body["dera"]["lambda"]
                return pair.generate(ids, lambda_, body["max_tokens"], streamer=streamer).size
            except Exception:
                streamer.end()  # else the stream would wait for more
                raise

        made = asyncio.get_running_loop().run_in_executor(worker, generate)
        async for piece in streamer:
            yield _event([{"index": 0, "text": piece, "finish_reason": None}])
        tokens = await made
        yield _event([{"index": 0, "text": "", "finish_reason": "length"}])
        yield _event([], usage={"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens})
        yield "data: [DONE]\n\n"

    return app


def _event(choices: list[dict], **more) -> str:
    return f"data: {json.dumps({'object': 'text_completion', 'choices': choices, **more})}\n\n"


def main(reference: str, aligned: str, device: str = "cpu") -> None:
    """Serves until it is stopped; uvicorn logs the address, whose port is a free one."""
    pair = TorchPair(Path(reference), Path(aligned), device)
    app = make_app(pair, AutoTokenizer.from_pretrained(aligned, trust_remote_code=False))
    uvicorn.run(app, host="127.0.0.1", port=0, access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
