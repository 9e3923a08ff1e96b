"""What each route does, with one pair of models."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import Request
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from dera_jax.data.tokens import text_ids
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.decoding.endings import Endings
from dera_jax.decoding.request import Completion
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule
from dera_jax.scoring.score import Scored, score
from dera_jax.serving.answers import Writer, beta_over, rounded
from dera_jax.serving.asking import Ask, Reader
from dera_jax.serving.config import ServeConfig
from dera_jax.serving.engine import Engine, Stopping
from dera_jax.serving.errors import ApiError
from dera_jax.serving.exchange import RETRY, Exchange
from dera_jax.serving.metrics import Metrics
from dera_jax.serving.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ScoreBody,
    TokenizeBody,
    read_body,
)
from dera_jax.serving.streams import Wanted, events
from dera_jax.serving.wholes import Answerer
from dera_jax.strengths import format_strength, strength_to_json

MOST_SCORED = 64
"""Completions of one `/v1/score`."""


class Service:
    """A pair of models, the engine that runs them, and what is said of them."""

    def __init__(
        self,
        policies: Sequence[Policy],
        config: ServeConfig,
        rule: Rule,
        draw: MixtureDraw,
        beta: float | None = None,
    ):
        """Serves `policies`, the reference first.

        Args:
          draw: whose batch decodes.
          beta: KL strength of the aligned model, if it is known.
        """
        self.policies, self.config, self.beta = policies, config, beta
        self.engine = Engine(policies, rule, config.decode, config.rows, config.queue, draw)
        self.metrics = Metrics(self.engine, config.name)
        self.reader = Reader(policies, config)
        self.writer = Writer(policies, beta)
        self.answerer = Answerer(self.engine, self.writer)
        eos_ids = {i for policy in policies for i in policy.eos_ids}
        self.endings = Endings(policies[-1].tokenizer, eos_ids, (), config.decode.max_new_tokens)
        self.begun = int(time.time())

    def models(self) -> list[dict]:
        """Returns what `/v1/models` lists: the pair, and its two ends."""
        ends = {(0.0,) * self.reader.num_aligned, (1.0,) + (0.0,) * (self.reader.num_aligned - 1)}
        offered = [end for end in sorted(ends) if all(self._offers(value) for value in end)]
        names = [self.config.name, *(f"{self.config.name}@{format_strength(end)}" for end in offered)]
        return [self.model(name) for name in names]

    def model(self, name: str) -> dict:
        """Returns one model.

        Raises:
          ApiError: there is none of this name.
        """
        strength = self.reader.strength(name, None)
        reference, *aligned = self.policies
        decode = self.config.decode
        dera = {
            "lambda": list(strength),
            "lambda_range": list(self.config.lambda_range),
            "reference": _public_name(reference.name),
            "aligned": [_public_name(policy.name) for policy in aligned],
            "beta": self.beta,
            "beta_over_lambda": beta_over(self.beta, strength),
            "chat": self.reader.has_template,
            "max_tokens": min(decode.max_new_tokens, self.reader.context - 1),
            "context": self.reader.context,
        }
        return {"id": name, "object": "model", "created": self.begun, "owned_by": "dera_jax", "dera": dera}

    async def completions(self, request: Request, data: bytes) -> Response | dict:
        """Answers `/v1/completions`."""
        body = read_body(data, CompletionBody)
        ask = await asyncio.to_thread(self.reader.completions, body)
        if not body.stream:
            return await self.answerer.completions(body, ask, await self._made(request, ask))
        if body.echo or body.logprobs:
            raise ApiError("stream: not supported together with echo, or logprobs above 0", param="stream")
        return self._streamed(request, ask, body, Wanted(False, body.logprobs is not None, *_extras(body)))

    async def chat(self, request: Request, data: bytes) -> Response | dict:
        """Answers `/v1/chat/completions`."""
        body = read_body(data, ChatBody)
        if body.top_logprobs and not body.logprobs:
            raise ApiError("top_logprobs: expected logprobs with it", param="top_logprobs")
        ask = await asyncio.to_thread(self.reader.chat, body)
        if not body.stream:
            return await self.answerer.chat(body, ask, await self._made(request, ask))
        if body.top_logprobs:
            raise ApiError("stream: not supported together with top_logprobs", param="stream")
        return self._streamed(request, ask, body, Wanted(True, bool(body.logprobs), *_extras(body)))

    async def score(self, request: Request, data: bytes) -> dict:
        """Answers `/v1/score`: given texts, under every model and at every strength."""
        body = read_body(data, ScoreBody)
        texts = [body.completion] if isinstance(body.completion, str) else body.completion
        if not 1 <= len(texts) <= MOST_SCORED:
            raise ApiError(
                f"completion: expected 1 to {MOST_SCORED} texts, found {len(texts)}", param="completion"
            )
        strengths = self.reader.strengths(body)
        prompts = [{"id": n} | self._asked(body) for n in range(len(texts))]
        call = self._call(lambda: score(self.policies, prompts, texts, strengths))
        try:
            found = await asyncio.wrap_future(call)
        except (ValueError, TypeError) as error:
            raise ApiError(" ".join(str(error).split())[:300]) from None
        return {
            "object": "list",
            "model": body.model or self.config.name,
            "lambda": list(map(strength_to_json, strengths)),
            "data": [self._scored(number, each) for number, each in enumerate(found)],
        }

    async def tokenize(self, request: Request, data: bytes) -> dict:
        """Answers `/tokenize`."""
        body = read_body(data, TokenizeBody)
        asked = self._asked(body)
        if "messages" in asked:
            tokens = list(self.reader.encoded(body.messages).tokens[-1])
        else:
            tokens = self._text_ids(body.prompt, body.add_special_tokens)
        return {"count": len(tokens), "max_model_len": self.reader.context, "tokens": tokens}

    async def detokenize(self, request: Request, data: bytes) -> dict:
        """Answers `/detokenize`."""
        body = read_body(data, DetokenizeBody)
        tokenizer = self.policies[-1].tokenizer
        if body.tokens and max(body.tokens) >= len(tokenizer):
            raise ApiError(
                f"tokens: expected ids below {len(tokenizer)}, found {max(body.tokens)}", param="tokens"
            )
        return {"prompt": tokenizer.decode(body.tokens)}

    def _text_ids(self, text: str, special: bool) -> list[int]:
        try:
            return text_ids(self.policies[-1].tokenizer, text, special=special)
        except ValueError as error:
            raise ApiError(str(error), param="prompt") from None

    def _asked(self, body: ScoreBody | TokenizeBody) -> dict:
        """Returns the prompt that a body has, checked."""
        self.reader.strength(body.model, None)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError("expected one of prompt and messages", param="prompt")
        if body.messages is None:
            return {"prompt": body.prompt}
        return {"messages": list(self.reader.chat_prompt(body.messages).messages)}

    def _offers(self, value: float) -> bool:
        least, most = self.config.lambda_range
        return least <= value <= most

    def _call(self, function):
        try:
            return self.engine.call(function)
        except Stopping as error:
            raise ApiError(str(error), 503, retry_after=RETRY) from None

    def _exchange(self, request: Request, ask: Ask, stream: bool) -> Exchange:
        client = request.client.host if request.client else ""
        return Exchange(self.engine, self.metrics, ask.requests, client, stream)

    async def _made(self, request: Request, ask: Ask) -> list[Completion]:
        """Returns the completions of a request, which are given up when its client goes away."""
        exchange = self._exchange(request, ask, False)
        made = asyncio.ensure_future(exchange.completions())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({made, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                raise ApiError("the client has gone away", 499)
            return made.result()
        finally:
            await _ended(made, gone)

    def _streamed(
        self, request: Request, ask: Ask, body: CompletionBody | ChatBody, wanted: Wanted
    ) -> EventSourceResponse:
        exchange = self._exchange(request, ask, True)

        async def pieces() -> AsyncIterator[dict]:
            try:
                async for data in events(exchange, ask, self.writer, self.endings, wanted):
                    yield {"data": data}
            finally:
                exchange.give_up()

        return EventSourceResponse(pieces(), sep="\n", ping=15)

    def _scored(self, number: int, found: Scored) -> dict:
        sums = [float(each.sum(dtype="float64")) for each in found.logprobs]
        return {
            "index": number,
            "tokens": found.tokens,
            "model_logprobs": [
                rounded(x) for x in found.model_logprobs.sum(axis=0, dtype="float64").tolist()
            ],
            "logprobs": [rounded(x) for x in sums],
            "kl": [rounded(float(each.sum(dtype="float64"))) for each in found.kl_to_reference],
            "log_z": [rounded(float(each.sum(dtype="float64"))) for each in found.log_normalizers],
            "token_logprobs": [[rounded(x) for x in each.tolist()] for each in found.logprobs],
        }


def _public_name(name: str) -> str:
    """Returns a model's name without the folders that it lies in here.

    >>> _public_name("org/model"), _public_name("/")
    ('org/model', '')
    """
    return "+".join(
        os.path.basename(part.rstrip("/")) if os.path.exists(part) else part for part in name.split("+")
    )


def _extras(body: CompletionBody | ChatBody) -> tuple[bool, bool]:
    """Returns whether a stream tells the figures of tokens, and the usage at its end."""
    return bool(body.dera and body.dera.tokens), bool(
        body.stream_options and body.stream_options.include_usage
    )


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: "asyncio.Future") -> None:
    """Cancels what still runs, and waits for it."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await task
