"""Completions as the JSON of OpenAI's answers, and the figures of realignment beside it."""

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from dera_jax.data.encoding import before
from dera_jax.data.tokens import REPLACEMENT, decode_completion
from dera_jax.decoding.device_loop import Drawn
from dera_jax.decoding.request import Completion, Request
from dera_jax.policies.policy import Policy
from dera_jax.serving.asking import Ask
from dera_jax.strengths import Strength, strength_to_json

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
"""`finish_reason` by ours."""


@dataclass(frozen=True)
class Token:
    """One token as text with its figures, in nats."""

    id: int
    text: str
    logprob: float
    kl: float
    """KL(mixture ‖ reference) in its place."""
    log_ratio: float
    """log π(token) − log π_ref(token)"""


class Writer:
    """Turns tokens into texts, and completions into answers, for one pair of models."""

    def __init__(self, policies: Sequence[Policy], beta: float | None):
        """Writes for `policies`, the reference first.

        Args:
          beta: KL strength of the aligned model, if it is known.
        """
        self.policies, self.beta = policies, beta
        self.tokenizer = policies[-1].tokenizer

    def continued(self, request: Request) -> Sequence[int]:
        """Returns the tokens that a completion continues."""
        return before(self.policies[-1], request.prompt.tokens[-1])

    def texts(self, known: Sequence[int], ids: Sequence[int], special: bool = True) -> list[str]:
        """Returns each token's text behind those before it; all of them together are about the whole text.

        Args:
          special: whether special tokens have one.
        """
        known = list(known)
        found = []
        for each in ids:
            found.append(decode_completion(self.tokenizer, known, [each], special=special))
            known.append(each)
        return found

    def tokens(
        self, request: Request, earlier: Sequence[int], ids: Sequence[int], drawn: Drawn
    ) -> list[Token]:
        """Returns tokens that were drawn behind `earlier` ones, with their figures."""
        record = drawn.record
        texts = self.texts([*self.continued(request), *earlier], ids)
        figures = zip(
            ids, texts, record.logprob, record.kl_to_reference, record.model_logprobs[:, 0], strict=False
        )
        return [
            Token(each, text, float(own), float(kl), float(own - reference))
            for each, text, own, kl, reference in figures
        ]

    def tokens_of(self, completion: Completion) -> list[Token]:
        """Returns the tokens of a whole completion; EOS has no text."""
        known, ids = self.continued(completion.request), completion.tokens
        texts = self.texts(known, ids)
        if completion.finish_reason == "eos":
            texts[-1] = ""
        ratios = completion.logprobs - completion.model_logprobs[:, 0]
        figures = zip(ids, texts, completion.logprobs, completion.kl_to_reference, ratios, strict=True)
        return [Token(i, text, float(own), float(kl), float(ratio)) for i, text, own, kl, ratio in figures]

    def figures(self, completion: Completion) -> dict:
        """Returns the `dera` object of an answer: sums over its tokens, in nats."""
        request = completion.request
        ratio = completion.logprobs - completion.model_logprobs[:, 0]
        normalizers = completion.log_normalizers
        return {
            "lambda": strength_to_json(request.lambda_),
            "beta_over_lambda": beta_over(self.beta, request.lambda_),
            "kl": _sum(completion.kl_to_reference),
            "log_z": None if normalizers is None else _sum(normalizers),
            "log_ratio": _sum(ratio),
            "seed": request.config.seed if request.config else None,
            **({"contrast": True} if request.prompt.prompt.contrast is not None else {}),
        }


def beta_over(beta: float | None, strength: Strength) -> float | None:
    """Returns β/λ of one aligned model; None where β is not known, or λ = 0 makes it infinite."""
    return beta / strength[0] if beta is not None and len(strength) == 1 and strength[0] else None


def _sum(values) -> float:
    return float(values.sum(dtype="float64"))


def envelope(ask: Ask, chat: bool) -> dict:
    """Returns what every part of an answer begins with."""
    kind = "chatcmpl" if chat else "cmpl"
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": "", "created": int(time.time()), "model": ask.model}


def usage(requests: Sequence[Request], tokens: int) -> dict:
    """Returns how many tokens were read and made; the prompt of several samples counts once."""
    prompts = {id(request.prompt): len(request.prompt.tokens[-1]) for request in requests}
    read = sum(prompts.values())
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


def dera_tokens(tokens: Sequence[Token]) -> list[dict]:
    """Returns the figures of tokens, as `dera.tokens` has them."""
    return [
        {
            "token": t.text,
            "kl": rounded(t.kl),
            "log_ratio": rounded(t.log_ratio),
            "logprob": rounded(t.logprob),
        }
        for t in tokens
    ]


def chat_logprobs(tokens: Sequence[Token], best: Sequence[Sequence[tuple[str, float]]] | None = None) -> dict:
    """Returns the `logprobs` of a chat's choice.

    Args:
      best: the most probable words in each place.
    """
    each = [
        _word(token.text, token.logprob)
        | {"top_logprobs": [_word(*word) for word in best[n]] if best else []}
        for n, token in enumerate(tokens)
    ]
    return {"content": each, "refusal": None}


def _word(text: str, logprob: float) -> dict:
    data = None if REPLACEMENT in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": rounded(logprob), "bytes": data}


def completion_logprobs(
    texts: Sequence[str],
    logprobs: Sequence[float | None],
    best: Sequence[dict[str, float] | None] | None,
    offset: int = 0,
    shown: Sequence[str] | None = None,
) -> dict:
    """Returns the `logprobs` of a completion's choice.

    Args:
      best: the most probable words in each place.
      offset: characters before the first token.
      shown: what each token has in the text, if that is something else than its own text.
    """
    offsets = []
    for text in texts if shown is None else shown:
        offsets.append(offset)
        offset += len(text)
    told = [None if each is None else rounded(each) for each in logprobs]
    return {"tokens": list(texts), "token_logprobs": told, "top_logprobs": best, "text_offset": offsets}


def rounded(value: float) -> float | None:
    """Returns a figure as JSON has it: with seven digits, and nothing for one that is not finite.

    >>> rounded(-1.23456789), rounded(float("-inf"))
    (-1.234568, None)
    """
    return float(f"{value:.7g}") if math.isfinite(value) else None
