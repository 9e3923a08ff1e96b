"""Bodies of requests, held to a schema: what OpenAI's clients send, and a `dera` object beside it."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from dera_jax.serving.errors import ApiError

MOST_SAMPLES, MOST_STOPS, LONGEST_STOP, MOST_PROMPTS, MOST_STRENGTHS = 128, 16, 256, 64, 64
"""Bounds of one request."""
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


class DeraOptions(Struct, forbid_unknown_fields=True):
    """What these models have beyond others."""

    lambda_: Any = msgspec.field(name="lambda", default=None)
    """A strength, a list with one for each aligned model, or with one for each turn."""
    contrast: str | list[dict[str, Any]] | None = None
    """What the reference reads in place of the prompt: a text, or messages."""
    tokens: bool | None = None
    """Whether answers tell the figures of every token."""


class StreamOptions(Struct):
    include_usage: bool | None = None


class Asked(Struct, kw_only=True):
    """What completions and chats have in common."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_SAMPLES)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    dera: DeraOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts.

        Raises:
          ApiError: too many, too long, or an empty one.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MOST_STOPS:
            raise ApiError(f"stop: expected at most {MOST_STOPS} texts, found {len(stops)}", param="stop")
        if (longest := max(map(len, stops), default=0)) > LONGEST_STOP:
            raise ApiError(f"stop: expected at most {LONGEST_STOP} characters, found {longest}", param="stop")
        if not all(stops):
            raise ApiError(
                "stop: expected texts with at least one character, found an empty one", param="stop"
            )
        return stops


class CompletionBody(Asked, kw_only=True):
    """Of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or a list of one kind of these."""
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None


class ChatBody(Asked, kw_only=True):
    """Of `/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ScoreBody(Struct, kw_only=True):
    """Of `/v1/score`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    completion: str | list[str]
    dera: DeraOptions | None = None


class TokenizeBody(Struct, kw_only=True):
    """Of `/tokenize`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Struct, kw_only=True):
    """Of `/detokenize`."""

    model: str | None = None
    tokens: list[Count]


Body = TypeVar("Body", bound=Struct)
Role = Literal["system", "developer", "user", "assistant", "tool"]
NEUTRAL: dict[str, tuple] = {
    "suffix": (None, ""),
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "use_beam_search": (None, False),
}
"""What other servers understand and this one does not: values under which it makes no difference."""


def read_body(data: bytes, kind: type[Body]) -> Body:
    """Returns a body.

    Raises:
      ApiError: it is no JSON, a field is of another type or out of range, or asks for what is not supported.
    """
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is no JSON: {_one_line(error)}") from None
    if not isinstance(fields, dict):
        raise ApiError("the body: expected a JSON object")
    for name, example in (("lambda", "1.5"), ("contrast", '"…"')):
        if name in fields:
            expected = f'expected it in the dera object, {{"dera": {{"{name}": {example}}}}}'
            raise ApiError(f"{name}: {expected}", param=name)
    for name, neutral in NEUTRAL.items():
        if name in fields and fields[name] not in neutral:
            raise ApiError(f"{name}: not supported by this server", param=name, code="unsupported_parameter")
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _told(error) from None


def _told(error: Exception) -> ApiError:
    """Returns `$.n` and what is expected there in this project's words."""
    said, _, place = _one_line(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    return ApiError(f"{place}: {said[0].lower() + said[1:]}" if place else said, param=place or None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
