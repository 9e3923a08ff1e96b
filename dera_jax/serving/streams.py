"""Answers piece by piece: server-sent events whose texts, joined, are the whole text."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from dera_jax.decoding.endings import Endings
from dera_jax.serving.answers import (
    REASONS,
    Token,
    Writer,
    chat_logprobs,
    completion_logprobs,
    dera_tokens,
    envelope,
    usage,
)
from dera_jax.serving.asking import Ask
from dera_jax.serving.errors import ApiError
from dera_jax.serving.exchange import Exchange
from dera_jax.serving.jobs import Finished, Progress


@dataclass(frozen=True)
class Wanted:
    """What pieces have beside their text."""

    chat: bool
    logprobs: bool
    tokens: bool
    """Whether the figures of every token."""
    usage: bool


@dataclass
class _Told:
    """How far one completion has been told."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    offset: int = 0
    """Characters of the tokens' texts."""


async def events(
    exchange: Exchange, ask: Ask, writer: Writer, endings: Endings, wanted: Wanted
) -> AsyncIterator[str]:
    """Yields the data of every event: JSON, then [DONE]. An error on the way is an event as well."""
    start = envelope(ask, wanted.chat)
    start["object"] = "chat.completion.chunk" if wanted.chat else "text_completion"
    states = [_Told() for _ in exchange.jobs]
    made = 0
    try:
        if wanted.chat:
            roles = [{"index": n, "delta": {"role": "assistant", "content": ""}} for n in range(len(states))]
            for choice in roles:
                yield _event(start, [choice | {"logprobs": None, "finish_reason": None}])
        async for number, event in exchange.events():
            if choice := _choice(number, event, states[number], ask, writer, endings, wanted):
                yield _event(start, [choice])
            if isinstance(event, Finished):
                made += len(event.completion.tokens)
        if wanted.usage:
            yield _event(start | {"usage": usage(ask.requests, made)}, [])
    except ApiError as error:
        yield json.dumps(error.body())
    yield "[DONE]"


def _event(start: dict, choices: list[dict]) -> str:
    return json.dumps(start | {"choices": choices}, ensure_ascii=False)


def _choice(
    number: int,
    event: Progress | Finished,
    told: _Told,
    ask: Ask,
    writer: Writer,
    endings: Endings,
    wanted: Wanted,
) -> dict | None:
    """Returns the choice of an event, None if it has nothing new to say."""
    request, earlier = ask.requests[number], list(told.tokens)
    figured = wanted.logprobs or wanted.tokens
    tokens: list[Token] = []
    dera: dict = {}
    if isinstance(event, Finished):
        completion = event.completion
        text, reason = completion.text, REASONS[completion.finish_reason]
        tokens = writer.tokens_of(completion)[len(earlier) :] if figured else []
        dera = writer.figures(completion)
    else:
        told.tokens += event.tokens
        own = endings.but(request.config.stop, request.config.max_new_tokens)
        text, reason = own.settled(writer.continued(request), told.tokens), None
        tokens = writer.tokens(request, earlier, event.tokens, event.drawn) if figured else []
    piece = text[len(told.text) :] if text.startswith(told.text) else ""
    told.text += piece
    if not (piece or reason or tokens):
        return None
    choice = {"index": number} | ({"delta": {"content": piece}} if wanted.chat else {"text": piece})
    choice |= {"logprobs": _logprobs(tokens, told, wanted), "finish_reason": reason}
    if wanted.tokens:
        dera["tokens"] = dera_tokens(tokens)
    return choice | ({"dera": dera} if dera else {})


def _logprobs(tokens: Sequence[Token], told: _Told, wanted: Wanted) -> dict | None:
    if not wanted.logprobs:
        return None
    if wanted.chat:
        return chat_logprobs(tokens)
    offset, texts = told.offset, [token.text for token in tokens]
    told.offset += sum(map(len, texts))
    return completion_logprobs(texts, [token.logprob for token in tokens], None, offset)
