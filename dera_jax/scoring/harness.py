"""lm-evaluation-harness with realigned policies: every strength from one pass of each model.

`Realigned` is lm-eval's model at one of several strengths. Whichever strength is asked first answers for
all; the others remember. Texts become tokens as in lm-eval's own model `hf` with its defaults, so that λ = 0
and λ = 1 give that model's numbers. (Where a model's files do not list as EOS what closes turns in its chat
template, `hf` goes on behind it; here it ends an answer, as everywhere.) Imported only where lm-eval is wanted.
"""

import copy
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from dera_jax.common.checks import check_count
from dera_jax.common.shown import shown
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.data.tokens import text_ids
from dera_jax.data.turn_ends import tell, turn_ends
from dera_jax.decoding.complete import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.policies.chat_templates import render_chat, render_started
from dera_jax.policies.hub import split_models
from dera_jax.policies.load import load_policies
from dera_jax.policies.policy import Policy
from dera_jax.policies.untrusted import Refusal
from dera_jax.policies.value_heads import check_language_models
from dera_jax.scoring.likelihood import Likelihood, likelihoods
from dera_jax.strengths import Strength, format_strength, parse_strengths, strength_to_json

logger = logging.getLogger(__name__)
SCORING_ROWS, DECODING_ROWS = 8, 32
"""Of a batch, unless the user says."""
SETTINGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
"""What tasks may ask of generation."""
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0}
"""What they may ask too, since it changes nothing."""
Tokens = tuple[list[int], list[int]]
"""A prompt's and a completion's."""
Asked = tuple[str, str, int]
"""What completions are of: a prompt, settings as JSON, and how often the same was asked before."""


@register_model("dera_jax")
class Realigned(TemplateLM):
    """Realigned policies as lm-eval's model; `at(i)` is the one at `lambdas[i]`, the first unless said."""

    def __init__(
        self,
        policies: Sequence[Policy],
        lambdas: Sequence[Strength],
        rows: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        chat_template_args: Mapping | None = None,
    ):
        """Takes policies of `load_policies`, the reference first.

        Args:
          rows: of a batch; None is 8 where completions are given and 32 where they are generated.
          max_length: tokens that models read at a time; None is what lm-eval finds for them.
          seed: of what is sampled, ≥ 0.
          chat_template_args: what the chat template is told, by the name that `hf` has for it.

        Raises:
          ValueError: `max_length` beyond the models' context; a tokenizer without BOS and EOS.
        """
        super().__init__()
        check_language_models(policies)
        self.policies, self.lambdas, self.rows, self.seed = policies, lambdas, rows, seed
        self.number, self.variables = 0, chat_template_args
        self.backend = "seq2seq" if policies[0].config.encoder_decoder else "causal"
        self.tokenizer = _tokenizer(policies)
        if self.prefix_token_id is None:
            raise ValueError(f"{policies[-1].name}: expected a tokenizer with BOS or EOS, found neither")
        configs = [AutoConfig.from_pretrained(policy.folder, trust_remote_code=False) for policy in policies]
        context = min(resolve_max_length(config, self.tokenizer) for config in configs)
        self.max_length = context if max_length is None else max_length
        check_count("max_length", self.max_length)
        if self.max_length > context and self.backend == "causal":
            raise ValueError(
                f"max_length: {self.max_length} tokens are beyond the models' context of {context}"
            )
        # Of all strengths; what `at` makes shares them.
        self._turn_ends: set[int] = set()
        self._scored: dict[tuple[str, ...], list] = {}
        self._generated: dict[Asked, list[str]] = {}

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "Realigned":
        """Returns the model of lm-eval's `model_args`: reference, aligned, lambda, dtype, rows, max_length."""
        given = dict(arg_dict)
        aligned = [name for name in split_models(str(given.pop("aligned", ""))) if name] or None
        lambdas = parse_strengths(str(given.pop("lambda", 1)), len(aligned or [1]))
        policies = load_policies(given.pop("reference", None), aligned, given.pop("dtype", "auto"))
        return cls(policies, lambdas, **given)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "Realigned":
        """Returns the model of `model_args` as a string, `reference=DIR,aligned=DIR,lambda=0.5`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def at(self, number: int) -> "Realigned":
        """Returns the model at `lambdas[number]`."""
        other = copy.copy(self)
        other.number = number
        return other

    def __repr__(self) -> str:
        return f"dera_jax at λ = {format_strength(self.lambdas[self.number])}"

    def get_model_info(self) -> dict:
        """Returns what lm-eval's files keep of the models."""
        return {
            "lambda": strength_to_json(self.lambdas[self.number]),
            "model_dtype": self.policies[0].config.dtype,
            "models": [{"name": p.name, "fingerprint": p.fingerprint} for p in self.policies],
        }

    @property
    def eot_token_id(self) -> int | None:
        """What ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text without a prompt."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the files in which lm-eval keeps requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """Returns the text of a chat; without the system's message where the template has no place for it."""

        def text(chat: list[dict]) -> str:
            if add_generation_prompt:
                return render_chat(self.tokenizer, chat, variables=self.variables)
            return render_started(self.tokenizer, chat, self.variables)

        self._end_turns()
        try:
            return text(chat_history)
        except Refusal:
            return text([message for message in chat_history if message["role"] != "system"])

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the template that lm-eval's files name; its turns' ends now end what is generated."""
        if chat_template:
            self._end_turns()
        return super().chat_template(chat_template)

    def _end_turns(self) -> None:
        ends = set(turn_ends(self.tokenizer)).difference(*(policy.eos_ids for policy in self.policies))
        self._turn_ends.update(ends)
        tell(self.tokenizer, ends, self.policies[-1].name)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Returns the ids of a text; BOS is not added to one that begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return text_ids(self.tokenizer, string, special=add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns log π(continuation | context) in nats of each request, and whether it is the greedy one."""
        new = {request.args: request for request in requests if request.args not in self._scored}
        if new:
            super().loglikelihood(list(new.values()), disable_tqdm=True)
        return [self._scored[request.args][self.number] for request in requests]

    def _loglikelihood_tokens(self, requests: list[tuple], **kwargs) -> list[tuple[float, bool]]:
        """Answers requests that lm-eval has made tokens of, at all strengths.

        Where a token spans a context and its continuation, lm-eval leaves the latter no tokens of its own. It
        has nothing to say then: log-probability 0, as `hf` gives it beside another choice of the context (alone
        it ends the run of `hf`).
        """
        empty = [texts for texts, _, continuation in requests if not continuation]
        self._scored |= {texts: [(0.0, True)] * len(self.lambdas) for texts in empty}
        if empty:
            context, continuation = (
                shown(text[-40:] if not n else text, 60) for n, text in enumerate(empty[0])
            )
            logger.warning(
                "%d of %d continuations have no tokens of their own and get log-probability 0, as a token "
                "spans the border to their contexts; the first: …%s | %s",
                len(empty), len(requests), context, continuation,
            )  # fmt: skip
        asked = [request for request in requests if request[2]]
        found = self._likelihoods([tokens for _, *tokens in asked])
        for (texts, *_), each in zip(asked, found, strict=True):
            self._scored[texts] = list(zip(each.logprobs.tolist(), each.is_greedy.tolist(), strict=True))
        return [self._scored[texts][self.number] for texts, *_ in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns log π(text) in nats of each request's text, read in windows where it is long."""
        new = list(dict.fromkeys(request.args for request in requests if request.args not in self._scored))
        windows = [self._windows(text) for (text,) in new]
        found = iter(self._likelihoods([window for each in windows for window in each]))
        for text, each in zip(new, windows, strict=True):
            parts = [next(found).logprobs for _ in each]
            self._scored[text] = np.sum(parts, axis=0).tolist() if parts else [0.0] * len(self.lambdas)
        return [self._scored[request.args][self.number] for request in requests]

    def _windows(self, text: str) -> list[Tokens]:
        tokens, prefix = self.tok_encode(text), self.prefix_token_id
        return list(map(make_disjoint_window, get_rolling_token_windows(tokens, prefix, self.max_length, 1)))

    def _likelihoods(self, requests: Sequence[Sequence[list[int]]]) -> list[Likelihood]:
        prompts, completions = [], []
        for prompt, completion in requests:
            if len(completion) > self.max_length:
                raise ValueError(
                    f"a continuation of {len(completion)} tokens: --max-length is {self.max_length}"
                )
            # The last token is not read, only its probability is.
            room = self.max_length + 1 - len(completion) if self.backend == "causal" else self.max_length
            prompts.append(prompt[-room:])
            completions.append(completion)
        found: list[Likelihood | None] = [None] * len(prompts)
        answers = likelihoods(self.policies, prompts, completions, self.lambdas, self.rows or SCORING_ROWS)
        for number, each in tqdm(answers, "log-likelihoods", len(prompts), disable=None, leave=False):
            found[number] = each
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what continues each request's context, up to a stop text or the most tokens."""
        seen: Counter[tuple[str, str]] = Counter()
        asked: list[Asked] = []
        for context, settings in (request.args for request in requests):
            same = context, json.dumps(settings, sort_keys=True)
            asked.append((*same, seen[same]))
            seen[same] += 1
        new = [key for key in asked if key not in self._generated]
        for settings in dict.fromkeys(settings for _, settings, _ in new):
            self._generate(settings, [key for key in new if key[1] == settings])
        return [self._generated[key][self.number] for key in asked]

    def _generate(self, settings: str, asked: Sequence[Asked]) -> None:
        """Keeps the texts of all strengths for requests that share their settings."""
        eos = None if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id)
        config, until = decode_config(json.loads(settings), eos, self.seed)
        room = self.max_length - (config.max_new_tokens if self.backend == "causal" else 0)
        if room < 1:
            raise ValueError(
                f"max_gen_toks={config.max_new_tokens} leaves no room in a context of {self.max_length} tokens; "
                "--gen-kwargs=max_gen_toks=N sets it"
            )
        prompts = {key: self._encode(key[0], room) for key in asked}
        requests = [Request(prompts[key], key[2], strength) for key in asked for strength in self.lambdas]
        texts = {key: [""] * len(self.lambdas) for key in asked}
        done = complete(self.policies, requests, config, self.rows or min(DECODING_ROWS, len(requests)))
        for completion in tqdm(done, "completions", len(requests), disable=None, leave=False):
            request = completion.request
            # Without the prompt's last tokens, as `hf` has it.
            text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
            text = postprocess_generated_text(text, until, None)
            texts[request.prompt.id, settings, request.sample][self.lambdas.index(request.lambda_)] = text
        self._generated |= texts

    def _encode(self, context: str, room: int) -> EncodedPrompt:
        bare = self.backend == "causal" and has_bos_prefix(context, self.tokenizer.bos_token)
        ids = text_ids(self.tokenizer, context, special=not bare)[-room:] or [self.prefix_token_id]
        starts = tuple(policy.config.start_token for policy in self.policies)
        ends = tuple(self._turn_ends)
        return EncodedPrompt(Prompt(context, context), (tuple(ids),) * len(self.policies), starts, ends)


def _tokenizer(policies: Sequence[Policy]) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of all policies, with the chat template that messages go through."""
    templated = (p for p in reversed(policies) if p.template is not None or p.tokenizer.chat_template)
    policy = next(templated, policies[-1])
    tokenizer = copy.copy(policy.tokenizer)
    if policy.template is not None:
        tokenizer.chat_template = policy.template
    return tokenizer


def decode_config(settings: Mapping, eos: str | None, seed: int) -> tuple[DecodeConfig, list[str]]:
    """Returns how to decode, and the texts to cut at, from a task's `generation_kwargs`.

    Args:
      settings: with lm-eval's names; sampled only with do_sample or a temperature.
      eos: text of the token that ends texts, which is a stop text too.

    Raises:
      ValueError: a setting that there is not here, or out of its range.
    """
    kwargs = normalize_gen_kwargs(dict(settings))
    # Of `until: null` it makes a list of nothing.
    until = handle_stop_sequences([text for text in kwargs.pop("until") if text is not None], eos)
    for name, value in kwargs.items():
        if name not in SETTINGS and NEUTRAL.get(name) != value:
            raise ValueError(
                f"generation_kwargs: expected {', '.join(sorted(SETTINGS))}; found {name}={value!r}"
            )
    config = DecodeConfig(
        max_new_tokens=kwargs["max_gen_toks"],
        temperature=float(kwargs.get("temperature", 0.0)) if kwargs["do_sample"] else 0.0,
        top_k=kwargs.get("top_k") or None,
        top_p=kwargs.get("top_p"),
        stop=tuple(stop for stop in until if stop),
        seed=seed,
    )
    return config, until
