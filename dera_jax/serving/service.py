"""What each route does, with one pair of models."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TypeVar

from fastapi import Request
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.tokens import text_ids
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.decoding.endings import Endings
from dera_jax.decoding.request import Completion
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, check_strength, is_mixture
from dera_jax.scoring.score import Scored, score_tokens
from dera_jax.serving.answers import Writer, beta_over, rounded
from dera_jax.serving.asking import Ask, Reader
from dera_jax.serving.config import ServeConfig
from dera_jax.serving.engine import Engine
from dera_jax.serving.errors import ApiError
from dera_jax.serving.exchange import Exchange, called
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
from dera_jax.strengths import Strength, format_strength, strength_to_json

Result = TypeVar("Result")
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
        self.engine = Engine(policies, rule, config.decode, config.rows, config.queue, draw, config.steps)
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
        strength = self.reader.strength(name or "?", None)
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
        if body.logprobs:
            self._check_mixture("logprobs above 0")
        if body.echo and body.logprobs is not None:
            self._check_echo(ask)
        if not body.stream:
            return await self._whole(request, ask, partial(self.answerer.completions, body, ask))
        if body.echo or body.logprobs:
            raise ApiError("stream: not supported together with echo, or logprobs above 0", param="stream")
        return self._streamed(request, ask, body, Wanted(False, body.logprobs is not None, *_extras(body)))

    async def chat(self, request: Request, data: bytes) -> Response | dict:
        """Answers `/v1/chat/completions`."""
        body = read_body(data, ChatBody)
        if body.top_logprobs and not body.logprobs:
            raise ApiError("top_logprobs: expected logprobs with it", param="top_logprobs")
        if body.top_logprobs:
            self._check_mixture("top_logprobs")
        ask = await asyncio.to_thread(self.reader.chat, body)
        if not body.stream:
            return await self._whole(request, ask, partial(self.answerer.chat, body, ask))
        if body.top_logprobs:
            raise ApiError("stream: not supported together with top_logprobs", param="stream")
        return self._streamed(request, ask, body, Wanted(True, bool(body.logprobs), *_extras(body)))

    async def score(self, request: Request, data: bytes) -> dict:
        """Answers `/v1/score`: given texts, under every model and at every strength."""
        body = read_body(data, ScoreBody)
        self._check_mixture("/v1/score")
        texts = [body.completion] if isinstance(body.completion, str) else body.completion
        if not 1 <= len(texts) <= MOST_SCORED:
            found = f"found {len(texts)}"
            raise ApiError(f"completion: expected 1 to {MOST_SCORED} texts, {found}", param="completion")
        strengths = self.reader.strengths(body)
        prompt = self.reader.asked(body)
        given = [self.reader.given(prompt, text) for text in texts]

        async def scored() -> list[Scored]:
            # One at a time: what is decoded goes on between two of them.
            each = [partial(self._score, prompt, ids, strengths) for ids in given]
            return [await called(self.engine, one) for one in each]

        return {
            "object": "list",
            "model": body.model or self.config.name,
            "lambda": list(map(strength_to_json, strengths)),
            "data": [
                self._scored(number, each)
                for number, each in enumerate(await _unless_gone(request, scored()))
            ],
        }

    async def tokenize(self, request: Request, data: bytes) -> dict:
        """Answers `/tokenize`."""
        body = read_body(data, TokenizeBody)
        if body.messages is None and body.prompt is not None:
            self.reader.strength(body.model, None)
            tokens = self._text_ids(body.prompt, body.add_special_tokens)
        else:
            tokens = list(self.reader.asked(body).tokens[-1])
        return {"count": len(tokens), "max_model_len": self.reader.context, "tokens": tokens}

    async def detokenize(self, request: Request, data: bytes) -> dict:
        """Answers `/detokenize`."""
        body = read_body(data, DetokenizeBody)
        self.reader.strength(body.model, None)
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

    def _check_mixture(self, what: str) -> None:
        """Refuses what only the linear mixture has: given tokens are read once for all strengths."""
        if not is_mixture(self.engine.rule):
            raise ApiError(f"{what}: not supported with this server's --rule", code="unsupported_parameter")

    def _check_echo(self, ask: Ask) -> None:
        """Refuses the figures of a prompt that not all models read alike, or that an encoder reads."""
        self._check_mixture("echo with logprobs")
        alike = all(len(set(request.prompt.tokens)) == 1 for request in ask.requests)
        if not alike or any(policy.config.encoder_decoder for policy in self.policies):
            raise ApiError(
                "echo: with logprobs, expected models that continue one and the same prompt", param="echo"
            )

    def _score(self, prompt: EncodedPrompt, ids: list[int], strengths: Sequence[Strength]) -> Scored:
        (found,) = score_tokens(self.policies, [prompt.tokens], [ids], strengths, 1)
        return found

    def _offers(self, value: float) -> bool:
        least, most = self.config.lambda_range
        return least <= value <= most

    def _exchange(self, request: Request, ask: Ask, stream: bool) -> Exchange:
        try:
            check_strength(self.engine.rule, ask.lambda_)
        except ValueError as error:
            raise ApiError(str(error), param="lambda") from None
        client = request.client.host if request.client else ""
        return Exchange(self.engine, self.metrics, ask.requests, client, stream)

    async def _whole(
        self, request: Request, ask: Ask, answer: Callable[[list[Completion]], Awaitable[dict]]
    ) -> dict:
        """Returns what `answer` makes of a request's completions."""
        exchange = self._exchange(request, ask, False)

        async def made() -> dict:
            return await answer(await exchange.completions())

        return await _unless_gone(request, made())

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


async def _unless_gone(request: Request, work: Coroutine[None, None, Result]) -> Result:
    """Returns the result of some work, which is given up when the client goes away.

    Raises:
      ApiError: it has gone away.
    """
    made, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({made, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            raise ApiError("the client has gone away", 499)
        return made.result()
    except ValueError as error:  # of the models: figures that are not finite
        raise ApiError(" ".join(str(error).split())[:300]) from None
    finally:
        await _ended(made, gone)


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
