"""Answers as a whole: the choices of a request whose completions have all ended."""

from collections.abc import Sequence
from functools import partial

from dera_jax.data.tokens import decode_completion
from dera_jax.decoding.request import Completion, Request
from dera_jax.serving.answers import (
    REASONS,
    Writer,
    chat_logprobs,
    completion_logprobs,
    dera_tokens,
    envelope,
    rounded,
    usage,
)
from dera_jax.serving.asking import Ask
from dera_jax.serving.engine import Engine
from dera_jax.serving.exchange import called
from dera_jax.serving.likeliest import Likeliest, likeliest
from dera_jax.serving.protocol import ChatBody, CompletionBody


class Answerer:
    """Makes whole answers; what needs another look at the models is done by the engine."""

    def __init__(self, engine: Engine, writer: Writer):
        self.engine, self.writer = engine, writer

    async def chat(self, body: ChatBody, ask: Ask, made: Sequence[Completion]) -> dict:
        """Returns the answer of `/v1/chat/completions`."""
        choices = []
        for number, completion in enumerate(made):
            choice: dict = {
                "index": number,
                "message": {"role": "assistant", "content": completion.text},
                "logprobs": None,
                "finish_reason": REASONS[completion.finish_reason],
                "dera": self._dera(body, completion),
            }
            if body.logprobs:
                choice["logprobs"] = await self._chat_logprobs(completion, body.top_logprobs or 0)
            choices.append(choice)
        return self._answer(ask, True, choices, made)

    async def completions(self, body: CompletionBody, ask: Ask, made: Sequence[Completion]) -> dict:
        """Returns the answer of `/v1/completions`."""
        choices = []
        for number, completion in enumerate(made):
            text = completion.text if body.max_tokens != 0 else ""
            choice: dict = {
                "index": number,
                "text": self._echoed(completion.request) + text if body.echo else text,
                "logprobs": await self._logprobs(body, completion) if body.logprobs is not None else None,
                "finish_reason": REASONS[completion.finish_reason],
                "dera": self._dera(body, completion),
            }
            choices.append(choice)
        return self._answer(ask, False, choices, made if body.max_tokens != 0 else ())

    def _answer(self, ask: Ask, chat: bool, choices: list[dict], made: Sequence[Completion]) -> dict:
        told = envelope(ask, chat) | {"object": "chat.completion" if chat else "text_completion"}
        tokens = sum(len(completion.tokens) for completion in made)
        return told | {"choices": choices, "usage": usage(ask.requests, tokens), "dera": choices[0]["dera"]}

    def _dera(self, body: ChatBody | CompletionBody, completion: Completion) -> dict:
        figures = self.writer.figures(completion)
        if body.max_tokens == 0:  # one was drawn, and is not in the answer
            return figures | dict.fromkeys(("kl", "log_z", "log_ratio"), 0.0)
        if body.dera and body.dera.tokens:
            figures["tokens"] = dera_tokens(self.writer.tokens_of(completion))
        return figures

    def _echoed(self, request: Request) -> str:
        """Returns the text of a prompt, of ids too, without special tokens."""
        return decode_completion(self.writer.tokenizer, (), request.prompt.tokens[-1])

    async def _chat_logprobs(self, completion: Completion, count: int) -> dict:
        request, best = completion.request, None
        if count:
            found = await self._likeliest(request, request.prompt.tokens, completion.tokens)
            best = self._words(self.writer.continued(request), completion.tokens, found, count)
        return chat_logprobs(self.writer.tokens_of(completion), best)

    async def _logprobs(self, body: CompletionBody, completion: Completion) -> dict:
        """Returns the `logprobs` of a completion, with its prompt's in front where that is echoed."""
        request, count = completion.request, body.logprobs or 0
        made = [] if body.max_tokens == 0 else self.writer.tokens_of(completion)
        ids = [token.id for token in made]
        if not body.echo:
            texts, known = [t.text for t in made], self.writer.continued(request)
            logprobs: list[float | None] = [t.logprob for t in made]
            best = None
            if count:
                found = await self._likeliest(request, request.prompt.tokens, ids)
                best = _first_of_each(self._words(known, ids, found, count))
            return completion_logprobs(texts, logprobs, best)
        whole = [list(each) for each in request.prompt.tokens]
        read = [*whole[-1][1:], *ids]
        # The first token has nothing before it.
        logprobs, best = [None], [None]
        if read:
            found = await self._likeliest(request, [each[:1] for each in whole], read)
            logprobs += list(map(float, found.logprobs))
            best += _first_of_each(self._words(whole[-1][:1], read, found, count))
        shown = self.writer.texts((), [*whole[-1], *ids], special=False)
        texts = self.writer.texts((), [*whole[-1], *ids])
        return completion_logprobs(texts, logprobs, best if count else None, shown=shown)

    async def _likeliest(
        self, request: Request, prompt: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> Likeliest:
        find = partial(likeliest, self.engine.policies, prompt, ids, request.lambda_)
        return await called(self.engine, find)

    def _words(
        self, known: Sequence[int], ids: Sequence[int], found: Likeliest, count: int
    ) -> list[list[tuple[str, float]]]:
        """Returns the `count` most probable words in each place, as texts behind what is before them."""
        words = []
        for place in range(len(ids)):
            before = [*known, *ids[:place]]
            each = zip(found.words[place][:count], found.word_logprobs[place][:count], strict=True)
            words.append([(self.writer.texts(before, [int(word)])[0], float(value)) for word, value in each])
        return words


def _first_of_each(words: Sequence[Sequence[tuple[str, float]]]) -> list[dict[str, float | None]]:
    """Returns the words of each place by their texts; of two alike the more probable one."""
    return [{text: rounded(value) for text, value in reversed(each)} for each in words]
