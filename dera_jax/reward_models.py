"""Reward models as rewards: `model:DIR`, a Hugging Face folder of a `…ForSequenceClassification`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from transformers import PreTrainedTokenizerBase

from dera_jax import models
from dera_jax.loading import families, hub, tensors, weights
from dera_jax.loading.names import NameMap
from dera_jax.models.reward import RewardConfig
from dera_jax.models.t5 import T5Config
from dera_jax.rewards import Completions
from dera_jax.tokenizer import bucket_length, load_tokenizer, pad_left

ROWS = 16
"""Texts read at a time."""
HEADS = {
    "last": {"score.kernel": "score.weight"},
    "encoder": {"score.kernel": "score.weight"},
    "decoder": {
        "dense.kernel": "classification_head.dense.weight",
        "dense.bias": "classification_head.dense.bias",
        "score.kernel": "classification_head.out_proj.weight",
        "score.bias": "classification_head.out_proj.bias",
    },
}
"""What the parameters of each head are called in files."""


@dataclass(frozen=True)
class RewardPolicy:
    """A reward model, ready to read."""

    name: str
    config: RewardConfig
    params: dict
    tokenizer: PreTrainedTokenizerBase


def load_reward_model(model: str, dtype: str = "auto") -> RewardPolicy:
    """Returns the reward model of a folder or hub id.

    Raises:
      ValueError: no such model, or one without a head of one label.
    """
    folder = hub.resolve(model)
    raw = families.read_config(folder)
    trunk = families.model_config(folder, raw)
    head = "last"
    if isinstance(trunk, T5Config):
        named = (raw.get("architectures") or [""])[0]
        head = "decoder" if named == "T5ForSequenceClassification" else "encoder"
    # With a tied head there is no other.
    config = RewardConfig(trunk=replace(trunk, tie_embeddings=True), head=head)
    family = families.FAMILIES[raw["model_type"]].names
    prefix = family.trunk or "transformer."
    own = {f"trunk.{path}": _prefixed(name, family.trunk, prefix) for path, name in family.names.items()}
    names = replace(family, names=own | HEADS[head], trunk=prefix)
    _check_head(folder, names, config)
    found = weights.find(folder, names, weights.full_shapes(config), config.num_heads)
    if dtype == "auto":
        dtype = weights.common_dtype(found, raw.get("dtype") or raw.get("torch_dtype"))
    config = replace(config, dtype=dtype, trunk=replace(config.trunk, dtype=dtype))
    return RewardPolicy(model, config, weights.read_params(found, dtype), load_tokenizer(folder))


def make(argument: str, spec: str) -> Callable[[Completions], list[float]]:
    """Returns `model:DIR`: what a reward model says of prompt and completion together.

    Chats go through its own chat template. Where the completion ended with EOS, the text does too.
    """
    policy = load_reward_model(argument)

    def reward(completions: Completions) -> list[float]:
        rows = zip(completions.prompts, completions.completions, completions.finish_reasons, strict=True)
        texts = [_encode(policy.tokenizer, *row, spec) for row in rows]
        return reward_texts(policy, texts).tolist()

    return reward


def reward_texts(policy: RewardPolicy, texts: Sequence[Sequence[int]]) -> Float[np.ndarray, " texts"]:
    """Returns the reward of each text, given as token ids.

    Raises:
      ValueError: a text that does not fit the model's context.
    """
    context = policy.config.trunk.max_positions
    longest = max(map(len, texts), default=0)
    if longest > context:
        raise ValueError(f"{policy.name}: a text of {longest} tokens does not fit its context of {context}")
    found = np.zeros(len(texts), np.float32)
    # Texts of about one length together: the longest of a batch decides its shape.
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        bucket = bucket_length(len(texts[part[-1]]))
        rows = [pad_left(texts[number], bucket) for number in part]
        rows += [pad_left([], bucket)] * (ROWS - len(part))
        tokens, mask = (np.concatenate(both) for both in zip(*rows, strict=True))
        found[part] = np.asarray(_forward(policy.config, policy.params, tokens, mask))[: len(part)]
    return found


@partial(jax.jit, static_argnames="config")
def _forward(
    config: RewardConfig, params: PyTree, tokens: Int[Array, "rows length"], mask: Bool[Array, "rows length"]
) -> Float[Array, " rows"]:
    return models.bind(config, params)(tokens, mask)


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[dict], completion: str, reason: str, spec: str
) -> list[int]:
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt + completion).input_ids)
        eos = tokenizer.eos_token_id
        return ids + [eos] if reason == "eos" and eos is not None and ids[-1:] != [eos] else ids
    if tokenizer.chat_template is None:
        raise ValueError(f"reward {spec}: the prompts are chats, but its tokenizer has no chat template")
    try:
        answered = [*prompt, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(answered, tokenize=False)
    except Exception as error:  # templates are programs, and fail in many ways
        raise ValueError(
            f"reward {spec}: the chat template refuses the chat: {' '.join(str(error).split())}"
        ) from error
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _prefixed(name, trunk: str, prefix: str):
    return name if trunk else f"{prefix}{name}"


def _check_head(folder, names: NameMap, config: RewardConfig) -> None:
    """Raises ValueError where a folder's model has no head, or one of several labels."""
    name = HEADS[config.head]["score.kernel"]
    listed = tensors.list_tensors(folder)
    if name not in listed:
        raise ValueError(
            f"{folder}: expected a reward model (…ForSequenceClassification), found no tensor {name}"
        )
    labels = listed[name].shape[0]
    if labels != 1:
        raise ValueError(f"{folder}: expected a reward model with one label, found {labels}")
