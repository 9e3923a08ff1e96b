"""Pad tokens of reward models: transformers reads a text at its last token that is none, EOS though it may be."""

from collections.abc import Mapping

from transformers import CONFIG_MAPPING

from dera_jax.policies import families
from dera_jax.policies.policy import Policy


def configured_pad(raw: Mapping) -> int | None:
    """Returns the id that transformers takes for padding: the configuration's, or its family's default."""
    if "pad_token_id" in raw:
        return raw["pad_token_id"]
    return getattr(CONFIG_MAPPING[raw["model_type"]](), "pad_token_id", None)


def reward_pad(policy: Policy) -> int | None:
    """Returns the pad token that a reward model is trained and saved with: transformers needs one to read rows.

    Not EOS unless there is nothing else: the place that is read lies before padding, and EOS says something.
    Whoever loads adapters has the configuration of their base, and no other.
    """
    tokenizer, own = policy.tokenizer, configured_pad(families.read_config(policy.folder))
    if policy.config.adapters:
        return own
    ids = [own, tokenizer.pad_token_id]
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        ids.append(tokenizer.unk_token_id)
    return next((i for i in (*ids, tokenizer.eos_token_id) if i is not None), None)
