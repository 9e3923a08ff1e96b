"""Reward models as rewards: `model:DIR`, a Hugging Face folder of a `…ForSequenceClassification`."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from transformers import PreTrainedTokenizerBase

from dera_jax.common.json_files import write_json
from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.models.keys import seed_key
from dera_jax.models.reward import RewardConfig
from dera_jax.models.t5_config import T5Config
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import adapters, families, hub, lora, manifests, names, tensors, tokenizers, weights
from dera_jax.policies.load import load_policy
from dera_jax.policies.names import NameMap
from dera_jax.policies.padding import configured_pad, reward_pad
from dera_jax.policies.policy import Policy
from dera_jax.policies.tokenizers import load_tokenizer, save_tokenizer

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
OWN = ("score.", "dense.")
"""What the paths of a head's parameters begin with: beside adapters they are trained too."""


@dataclass(frozen=True)
class RewardPolicy:
    """A reward model, ready to read."""

    name: str
    config: RewardConfig
    params: dict
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """Whose configuration it has."""
    fingerprint: str | None = None
    """Hash of configuration, weights and tokenizer; None where it is still to be trained."""
    adapter: Path | None = None
    """Folder of the adapter that it was loaded with."""


def load_reward_model(model: str, dtype: str = "auto") -> RewardPolicy:
    """Returns the reward model of a MODEL: a folder or hub id, or `BASE+ADAPTER`, whose head the adapter has.

    Raises:
      ValueError: no such model, or one without a head of one label.
    """
    name, adapter = hub.split_adapter(model)
    if adapter:
        return _load_adapted(model, name, hub.resolve(adapter), dtype)
    folder = hub.resolve(model)
    raw = families.read_config(folder)
    trunk = families.model_config(folder, raw)
    head = "last"
    if isinstance(trunk, T5Config):
        named = (raw.get("architectures") or [""])[0]
        head = "decoder" if named == "T5ForSequenceClassification" else "encoder"
    # With a tied head there is no other.
    config = RewardConfig(trunk=replace(trunk, tie_embeddings=True), head=head, pad_token=configured_pad(raw))
    names = _names(raw["model_type"], head)
    _check_head(folder, config)
    found = weights.find(folder, names, weights.full_shapes(config), config.num_heads)
    if dtype == "auto":
        stored = weights.common_dtype(found, raw.get("dtype") or raw.get("torch_dtype"))
        dtype = weights.computed_dtype(stored)
    config = replace(config, dtype=dtype, trunk=replace(config.trunk, dtype=dtype))
    own = tensors.fingerprint(folder / "config.json", tensors.weight_files(folder))
    return RewardPolicy(
        name=model,
        config=config,
        params=weights.read_params(found, dtype),
        tokenizer=load_tokenizer(folder),
        folder=folder,
        fingerprint=f"{own} {tokenizers.fingerprint(folder)}",
    )


def _load_adapted(model: str, base: str, adapter_folder: Path, dtype: str) -> RewardPolicy:
    """Returns the reward model of a language model and an adapter that has a head for it."""
    policy = load_policy(base, dtype)
    adapter, kind = adapters.read_adapter(adapter_folder), families.read_config(policy.folder)["model_type"]
    head = "decoder" if isinstance(policy.config, T5Config) else "last"
    name_map, family = _names(kind, head), families.FAMILIES[kind].names
    reward = fresh_reward_model(policy, 0)
    heads = names.sources(name_map, [path for path in flatten(reward.params) if path.startswith(OWN)], 1)
    shapes, flat = weights.full_shapes(reward.config), {}
    for path, source in heads.items():
        tensor = adapter.tensors.get(source.name)
        expected = source.shape(shapes[path])
        if tensor is None or tensor.shape != expected:
            found = f"one of shape {tensor.shape}" if tensor else "none"
            raise ValueError(
                f"{shown(adapter_folder, 200)}: expected the adapter of a reward model, with a tensor {source.name} "
                f"of shape {expected}; found {found}"
            )
        flat[path] = jnp.asarray(source.take(tensor.read()), policy.config.dtype)
        weights.check_finite(np.asarray(flat[path]), tensor, policy.config.dtype)
    taken = {source.name for source in heads.values()}
    prefix = "" if family.trunk else name_map.trunk
    of_trunk = {name.removeprefix(prefix): t for name, t in adapter.tensors.items() if name not in taken}
    adapters.check_base(adapter, base, policy.fingerprint)
    trunk = replace(adapter, tensors=of_trunk)
    config, params = adapters.apply_adapter(trunk, base, policy.config, policy.params, family)
    whole = fresh_reward_model(replace(policy, config=config, params=params), 0)
    tokenizer = policy.tokenizer
    if (adapter_folder / "tokenizer_config.json").exists():
        tokenizer = load_tokenizer(adapter_folder)
    params = unflatten(flatten(whole.params) | flat)
    own = adapters.fingerprint(adapter, policy.fingerprint)
    reading = adapter_folder if tokenizer is not policy.tokenizer else policy.folder
    return replace(
        whole,
        name=model,
        params=params,
        tokenizer=tokenizer,
        adapter=adapter_folder,
        fingerprint=f"{own} {tokenizers.fingerprint(reading)}",
    )


def fresh_reward_model(policy: Policy, seed: int) -> RewardPolicy:
    """Returns a reward model with the trunk of `policy` and a random head, to be trained.

    Raises:
      ValueError: weights that are quantized, or an adapter of the language model's head.
    """
    if policy.config.quantization:
        raise ValueError(f"{policy.name}: a reward model starts from weights in full precision")
    if any(one.path == "head" for one in policy.config.adapters):
        raise ValueError(
            f"{policy.name}: has an adapter of its head, which a reward model has not; "
            f"{spelled('combine')} --lambda=1 merges adapters"
        )
    config = RewardConfig(
        trunk=replace(policy.config, tie_embeddings=True, adapters=()),
        head="decoder" if isinstance(policy.config, T5Config) else "last",
        dtype=policy.config.dtype,
        adapters=tuple(replace(one, path=f"trunk.{one.path}") for one in policy.config.adapters),
        pad_token=reward_pad(policy),
    )
    trunk = {name: value for name, value in policy.params.items() if name != "head"}
    width = config.trunk.width
    key, last = jax.random.split(seed_key(seed))
    params = {"trunk": trunk, "score": {"kernel": _small(last, (width, 1), config.dtype)}}
    if config.head == "decoder":
        params["score"]["bias"] = jnp.zeros(1, config.dtype)
        kernel = _small(key, (width, width), config.dtype)
        params["dense"] = {"kernel": kernel, "bias": jnp.zeros(width, config.dtype)}
    return RewardPolicy(policy.name, config, params, policy.tokenizer, policy.folder, adapter=policy.adapter)


def with_reward_params(reward: RewardPolicy, params: dict) -> RewardPolicy:
    """Returns `reward` with other parameters."""
    return replace(reward, params=params)


def save_reward_model(reward: RewardPolicy, folder: Path, manifest: dict) -> None:
    """Writes a reward model as a folder that `AutoModelForSequenceClassification` loads; the manifest last.

    Raises:
      ValueError: the folder cannot be written.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as classes,
    )

    raw = families.read_config(reward.folder)
    kind = raw["model_type"]
    settings = {name: value for name, value in raw.items() if name != "torch_dtype"} | {
        "architectures": [classes[kind]],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "dtype": reward.config.dtype,
    }
    pad, tokenizer = reward.config.pad_token, reward.tokenizer
    settings["pad_token_id"] = pad
    if tokenizer.pad_token_id is None and pad is not None and 0 <= pad < len(tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "config.json", settings)
    named = weights.named_tensors(reward.params, _names(kind, reward.config.head), reward.config.num_heads)
    tensors.save_tensors(folder, named)
    manifests.write_manifest(folder, manifest)


def save_reward_adapter(reward: RewardPolicy, folder: Path, base_name: str, manifest: dict) -> None:
    """Writes a reward model's adapters and its head as a PEFT folder, task SEQ_CLS; the manifest last.

    Args:
      base_name: MODEL that they stand on.

    Raises:
      ValueError: the folder cannot be written.
    """
    start = adapters.read_adapter(reward.adapter) if reward.adapter else None
    name_map = _names(families.read_config(reward.folder)["model_type"], reward.config.head)
    heads = {path: value for path, value in flatten(reward.params).items() if path.startswith(OWN)}
    save_tokenizer(reward.tokenizer, folder)
    named = weights.named_tensors(unflatten(heads), name_map, reward.config.num_heads)
    lora.write_adapter(folder, reward.config, reward.params, name_map, base_name, start, named)
    manifests.write_manifest(folder, manifest)


def _names(kind: str, head: str) -> NameMap:
    """Returns what the parameters of a reward model of an architecture are called in files."""
    family = families.FAMILIES[kind].names
    prefix = family.trunk or "transformer."
    own = {
        f"trunk.{path}": name if family.trunk else f"{prefix}{name}" for path, name in family.names.items()
    }
    return replace(family, names=own | HEADS[head], trunk=prefix)


def _small(key: Array, shape: tuple[int, int], dtype: str) -> Float[Array, "inputs outputs"]:
    return (jax.random.normal(key, shape) * 0.02).astype(dtype)


def _check_head(folder: Path, config: RewardConfig) -> None:
    """Raises ValueError where a folder's model has no head, or one of several labels."""
    name = HEADS[config.head]["score.kernel"]
    listed = tensors.list_tensors(folder)
    if name not in listed:
        raise ValueError(
            f"{shown(folder, 200)}: expected a reward model (…ForSequenceClassification), found no tensor {name}"
        )
    labels = next(iter(listed[name].shape), 0)
    if labels != 1:
        raise ValueError(f"{shown(folder, 200)}: expected a reward model with one label, found {labels}")
