"""From bodies to requests: the strength, the prompts as ids, how they are drawn."""

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from dera_jax.common.shown import shown
from dera_jax.common.usable import Unusable
from dera_jax.data.answers import encode_answer
from dera_jax.data.encoding import DoesNotFit, EncodedPrompt, encode_turn
from dera_jax.data.prompts import Prompt, with_settings
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.policies.policy import Policy
from dera_jax.serving.config import ServeConfig, check_in_range
from dera_jax.serving.errors import ApiError
from dera_jax.serving.protocol import (
    MOST_PROMPTS,
    MOST_STRENGTHS,
    Asked,
    ChatBody,
    CompletionBody,
    DeraOptions,
    Role,
    ScoreBody,
    TokenizeBody,
)
from dera_jax.strengths import Strength, as_strengths


@dataclass(frozen=True)
class Ask:
    """What a request asks for."""

    requests: tuple[Request, ...]
    """All samples of the first prompt, then those of the next."""
    lambda_: Strength
    model: str
    """As the client has named it."""


class Reader:
    """Makes requests of bodies, for one pair of models."""

    def __init__(self, policies: Sequence[Policy], config: ServeConfig):
        """Reads for `policies`, the reference first."""
        self.policies, self.config = policies, config
        self.context = min(policy.config.max_positions for policy in policies)
        self._lock = threading.Lock()  # tokenizers are not made for two threads

    @property
    def num_aligned(self) -> int:
        return len(self.policies) - 1

    @property
    def has_template(self) -> bool:
        """Whether chats can be read."""
        return any(p.template is not None or p.tokenizer.chat_template for p in self.policies)

    def completions(self, body: CompletionBody) -> Ask:
        """Returns what a body of `/v1/completions` asks for.

        Raises:
          ApiError: it cannot be had.
        """
        given = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        prompts = [given] if given and isinstance(given[0], int) else given
        if len({type(each) for each in given}) > 1:
            raise ApiError("prompt: expected texts alone, or token ids alone", param="prompt")
        if not prompts:
            raise ApiError("prompt: expected at least one, found none", param="prompt")
        if len(prompts) > MOST_PROMPTS:
            raise ApiError(f"prompt: expected at most {MOST_PROMPTS}, found {len(prompts)}", param="prompt")
        wanted = self.config.decode.max_new_tokens if body.max_tokens is None else body.max_tokens
        if wanted == 0 and not body.echo:
            raise ApiError("max_tokens: expected at least 1, or `echo`, found 0", param="max_tokens")
        asked = [self._contrasted(prompt, body.dera) for prompt in prompts]
        encoded = [self._encode(prompt, max(1, wanted), body.max_tokens is None) for prompt in asked]
        return self._ask(body, encoded, max(1, wanted), 0)

    def chat(self, body: ChatBody) -> Ask:
        """Returns what a body of `/v1/chat/completions` asks for.

        Raises:
          ApiError: it cannot be had.
        """
        continued = bool(body.continue_final_message)
        asked = self.chat_prompt(body.messages, continued, body.chat_template_kwargs)
        asked = self._contrasted(asked, body.dera)
        given = body.max_completion_tokens or body.max_tokens
        wanted = given or self.config.decode.max_new_tokens
        turn = sum(message["role"] == "assistant" for message in asked.messages or ())
        return self._ask(body, [self._encode(asked, wanted, given is None)], wanted, turn)

    def chat_prompt(
        self,
        messages: Sequence[dict],
        continued: bool = False,
        variables: dict | None = None,
        name: str = "messages",
    ) -> Prompt:
        """Returns a chat as the prompt of its next answer.

        Args:
          name: of the field that the messages are in, for errors.

        Raises:
          ApiError: there is no chat template, or the messages are none that can be answered.
        """
        if not self.has_template:
            raise ApiError(
                "this model has no chat template: use /v1/completions, or start the server with --chat-template",
                param=name,
            )
        if not messages:
            raise ApiError(f"{name}: expected at least one, found none", param=name)
        roles = get_args(Role)
        joined: list[dict] = []
        for number, message in enumerate(messages):
            if message.get("role") not in roles:
                found = shown(repr(message.get("role")), 40)
                raise ApiError(
                    f"{name}[{number}].role: expected one of {', '.join(roles)}, found {found}",
                    param=name,
                )
            message = {**message, "content": _content(message, number, name)}
            if message["role"] == "developer":
                message["role"] = "system"
            # Two of the user in a row would be two turns to answer.
            if joined and joined[-1]["role"] == message["role"] == "user":
                joined[-1]["content"] += "\n\n" + message["content"]
            else:
                joined.append(message)
        prefix = ""
        if joined[-1]["role"] == "assistant":
            if not continued:
                how = "; set continue_final_message to have it continued" if name == "messages" else ""
                raise ApiError(
                    f"{name}: expected the last one to be the user's, found the assistant's{how}", param=name
                )
            prefix = joined.pop()["content"]
        return self._prompt({"messages": joined, "prefix": prefix}, name, variables)

    def asked(self, body: ScoreBody | TokenizeBody) -> EncodedPrompt:
        """Returns the prompt of a body that has one, or messages, as ids."""
        self.strength(body.model, None)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError("expected one of prompt and messages", param="prompt")
        asked = body.prompt if body.messages is None else self.chat_prompt(body.messages)
        return self._encode(self._contrasted(asked, getattr(body, "dera", None)), 0)

    def given(self, prompt: EncodedPrompt, text: str) -> list[int]:
        """Returns the ids of a text that is given as a completion."""
        try:
            with self._lock:
                ids = encode_answer(self.policies[-1], prompt, text)
        except ValueError as error:
            raise ApiError(str(error), param="completion") from None
        if not ids:
            raise ApiError("completion: expected texts of at least one token", param="completion")
        longest = max(map(len, prompt.tokens))
        if longest + len(ids) - 1 > self.context:
            raise _too_long(longest, len(ids), self.context, "completion")
        return ids

    def _prompt(self, value: object, param: str, variables: dict | None = None) -> Prompt:
        try:
            return with_settings(Prompt.of(value, where="the request"), variables or {})
        except ValueError as error:
            raise ApiError(str(error), param=param) from None

    def _contrasted(
        self, asked: Prompt | str | list[int], options: DeraOptions | None
    ) -> Prompt | str | list[int]:
        """Returns what is asked, with what the reference reads in its place."""
        contrast, param = options and options.contrast, "dera.contrast"
        if contrast is None:
            return asked
        if isinstance(asked, list):
            raise ApiError(f"{param}: expected a text as prompt, found token ids", param=param)
        if isinstance(asked, str):
            return self._prompt({"prompt": asked, "contrast": contrast}, param)
        if isinstance(contrast, list):  # held to what the messages are
            contrast = self.chat_prompt(contrast, name=param).messages
        told = {"messages": asked.messages, "prefix": asked.prefix, "contrast": contrast}
        return replace(self._prompt(told, param), columns=asked.columns)

    def _encode(self, asked: Prompt | str | list[int], new: int, shorter: bool = False) -> EncodedPrompt:
        """Returns a prompt as ids.

        Args:
          new: tokens that may follow it.
          shorter: whether so many that there is room for will do.
        """
        if isinstance(asked, list):
            return self._of_ids(asked, new)
        param = "prompt" if isinstance(asked, str) or asked.messages is None else "messages"
        prompt = self._prompt(asked, param) if isinstance(asked, str) else asked
        try:
            with self._lock:
                return encode_turn(self.policies, prompt, (), 1 if shorter else new)
        except DoesNotFit as error:
            raise _too_long(error.tokens, new, error.context, param) from None
        except (Unusable, ValueError) as error:
            raise ApiError(str(error), param=param) from None

    def _of_ids(self, ids: list[int], new: int) -> EncodedPrompt:
        if any(policy.instruction for policy in self.policies):
            raise ApiError(
                "prompt: expected a text, as some models have an instruction; found ids", param="prompt"
            )
        vocab = min(policy.config.vocab_size for policy in self.policies)
        if not ids or not all(0 <= each < vocab for each in ids):
            raise ApiError(f"prompt: expected token ids from 0 to {vocab - 1}, at least one", param="prompt")
        if len(ids) + new - 1 > self.context:
            raise _too_long(len(ids), new, self.context, "prompt")
        with self._lock:
            text = self.policies[-1].tokenizer.decode(ids)
        starts = tuple(policy.config.start_token for policy in self.policies)
        return EncodedPrompt(Prompt(0, text or " "), (tuple(ids),) * len(self.policies), starts)

    def _ask(self, body: Asked, prompts: Sequence[EncodedPrompt], new: int, turn: int) -> Ask:
        lambda_ = self.strength(body.model, body.dera, turn)
        requests = []
        for prompt in prompts:
            room = self.context - max(map(len, prompt.tokens)) + 1
            config = self._decode(body, min(new, room))
            requests += [Request(prompt, sample, lambda_, config=config) for sample in range(body.n or 1)]
        return Ask(tuple(requests), lambda_, body.model or self.config.name)

    def _decode(self, body: Asked, new: int) -> DecodeConfig:
        given = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
        settings = {name: value for name, value in given.items() if value is not None}
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        stops = self.config.decode.stop if body.stop is None else body.stops
        try:
            return replace(self.config.decode, max_new_tokens=new, seed=seed, stop=stops, **settings)
        except ValueError as error:
            raise ApiError(str(error), param=str(error).partition(":")[0]) from None

    def strength(self, model: str | None, options: DeraOptions | None, turn: int = 0) -> Strength:
        """Returns the strength of a request: of its `dera` object, else of the model's name, else the server's.

        Args:
          turn: number of answers before this one.

        Raises:
          ApiError: an unknown model, or a strength that is none or is not offered.
        """
        named = self._named(model)
        given = options and options.lambda_
        if given is None:
            found = named or self.config.lambda_
            self._check_range(found)
            return found
        turns = [self._offered(each) for each in _turns(given, self.num_aligned)]
        if len(turns) > 1 and turn >= len(turns):
            raise ApiError(
                f"dera.lambda: expected a strength for each of {turn + 1} turns, found {len(turns)}",
                param="dera.lambda",
            )
        return turns[turn if len(turns) > 1 else 0]

    def strengths(self, body: ScoreBody) -> list[Strength]:
        """Returns the strengths that a text is to be scored at."""
        given = body.dera and body.dera.lambda_
        if given is None:
            return [self.strength(body.model, None)]
        self._named(body.model)
        several = _turns(given, self.num_aligned)
        if not 1 <= len(several) <= MOST_STRENGTHS:
            raise ApiError(
                f"dera.lambda: expected 1 to {MOST_STRENGTHS} strengths, found {len(several)}",
                param="dera.lambda",
            )
        return list(dict.fromkeys(map(self._offered, several)))

    def _named(self, model: str | None) -> Strength | None:
        """Returns the strength in a model's name, `NAME@1.5`."""
        if model is None or model == self.config.name:
            return None
        name, _, strength = model.rpartition("@")
        if name != self.config.name:
            raise ApiError(
                f"the model {shown(model, 80)!r} does not exist: there is {self.config.name}, and "
                f"{self.config.name}@STRENGTH",
                404, param="model", code="model_not_found",
            )  # fmt: skip
        return self._strength(strength, "model")

    def _strength(self, value: object, param: str = "dera.lambda") -> Strength:
        try:
            found = as_strengths(value if isinstance(value, str) else [value], self.num_aligned, param)
        except (ValueError, TypeError) as error:
            example = "1.5 or 1/2" if self.num_aligned == 1 else "+".join(["0.5"] * self.num_aligned)
            told = f"{param}: expected a strength such as {example}, found {shown(value, 40)!r}"
            raise ApiError(told if isinstance(value, str) else str(error), param=param) from None
        if len(found) != 1:
            raise ApiError(f"{param}: expected one strength, found {len(found)}", param=param)
        return found[0]

    def _offered(self, value: object) -> Strength:
        """Returns a strength of a `dera` object, which is one that is offered."""
        found = self._strength(value)
        self._check_range(found)
        return found

    def _check_range(self, strength: Strength) -> None:
        try:
            check_in_range(strength, self.config.lambda_range, "dera.lambda")
        except ValueError as error:
            raise ApiError(str(error), param="dera.lambda") from None


def _too_long(tokens: int, new: int, context: int, param: str) -> ApiError:
    left = context - tokens + 1
    room = f"; there is room for max_tokens={left}" if left > 0 else ""
    return ApiError(
        f"{tokens} tokens and {new} new ones do not fit the context of {context} tokens{room}",
        param=param,
        code="context_length_exceeded",
    )


def _turns(given: object, num_aligned: int) -> list:
    """Returns the strengths that a list has, one for each turn or text; of several models a list of numbers is one."""
    if not isinstance(given, list) or not given:
        return [given]
    vector = num_aligned > 1 and not any(isinstance(each, list | str) for each in given)
    return [given] if vector else given


def _content(message: dict, number: int, name: str) -> str:
    """Returns the text of a message, which may be in parts."""
    content, where = message.get("content"), f"{name}[{number}].content"
    if isinstance(content, list):
        for part in content:
            if not (
                isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            ):
                kind = part.get("type") if isinstance(part, dict) else part
                raise ApiError(f"{where}: expected parts of text, found {shown(str(kind), 40)}", param=name)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) or not (content or message["role"] == "assistant"):
        raise ApiError(f"{where}: expected a text with at least one character", param=name)
    return content
