"""Policies and their adapters, written as Hugging Face folders."""

from pathlib import Path

from dera_jax.common.json_files import write_json
from dera_jax.policies import adapters, families, lora, manifests, settings, tensors, weights
from dera_jax.policies.low_rank import name_map
from dera_jax.policies.policy import Policy
from dera_jax.policies.tokenizers import save_tokenizer


def save_policy(policy: Policy, folder: str | Path, manifest: dict | None = None) -> None:
    """Writes a policy as a folder that `transformers` loads: the weights, then what says that they are whole.

    Adapters are merged into the weights.

    Args:
      manifest: how the policy was made; written last, as manifest.json.

    Raises:
      ValueError: the folder cannot be written, or the weights are quantized or steered, as no such folder is.
    """
    if policy.config.steered:
        raise ValueError(
            f"{policy.name}: expected a policy without steering, whose vectors are in a file of their own"
        )
    if policy.config.quantization:
        raise ValueError(
            f"{policy.name}: expected weights in full precision, found {policy.config.quantization}"
        )
    folder = Path(folder)
    config, params = adapters.merge_adapters(policy.config, policy.params)
    raw = families.read_config(policy.folder)
    generation = settings.read_generation(policy.folder)
    save_tokenizer(policy.tokenizer, folder)
    # `torch_dtype` is what older versions of transformers called it.
    kept = {name: value for name, value in raw.items() if name != "torch_dtype"}
    # An adapter, or the files, may have untied the head.
    tied = {"tie_word_embeddings": False} if not config.tie_embeddings else {}
    write_json(folder / "config.json", kept | tied | {"dtype": config.dtype})
    if generation:
        write_json(folder / "generation_config.json", generation)
    named = weights.named_tensors(params, raw["model_type"], config.num_heads)
    tensors.save_tensors(folder, named)
    if manifest is not None:
        manifests.write_manifest(folder, manifest)


def save_adapter(policy: Policy, folder: Path, base_name: str, manifest: dict | None = None) -> None:
    """Writes a policy's adapters as a PEFT folder, with its tokenizer.

    Args:
      base_name: MODEL that they stand on: whoever loads them elsewhere looks for it by this name.
      manifest: how the policy was made; written last, as manifest.json.

    Raises:
      ValueError: no adapters, or the folder cannot be written.
    """
    if not policy.config.adapters:
        raise ValueError(f"{policy.name}: expected a policy with adapters, found none; save the whole model")
    start = adapters.read_adapter(policy.adapter) if policy.adapter else None
    save_tokenizer(policy.tokenizer, folder)
    lora.write_adapter(folder, policy.config, policy.params, name_map(policy), base_name, start)
    if manifest is not None:
        manifests.write_manifest(folder, manifest)
