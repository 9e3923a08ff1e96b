"""`adapter_config.json` of a PEFT adapter: what is read of it, and its patterns of names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from dera_jax.common.json_files import read_json
from dera_jax.common.notes import note
from dera_jax.common.shown import shown
from dera_jax.policies import untrusted

FILE = "adapter_config.json"
REFUSED = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "kasa_config": None,
    "arrow_config": None,
    "monteclora_config": None,
}
"""Settings that change what an adapter computes; supported is only their default."""
OBEYED = {
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "init_lora_weights", "revision",
}  # fmt: skip
TOLD_BY_TENSORS = {
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "ensure_weight_tying", "fan_in_fan_out",
}  # fmt: skip
"""Settings of which modules an adapter has and how they lie: its file holds those, and no others."""
WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config", "megatron_config",
    "megatron_core", "lora_dropout", "velora_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size",
}  # fmt: skip
"""Settings of training, of its start, and of what other settings turn on."""
STARTS = ("gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights`, beside true and false, that leave the base as it was. Any other takes the
adapter's start from the base's weights (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), and again when it is loaded."""
Rank = Annotated[int, Meta(ge=1, lt=2**31)]
Name = Annotated[str, Meta(max_length=4096)]


class AdapterSettings(TypedDict, total=False):
    """What is read of `adapter_config.json`; PEFT's own defaults stand for what is not there."""

    peft_type: str | None
    base_model_name_or_path: Name | None
    revision: str | None
    r: Rank
    lora_alpha: float
    rank_pattern: dict[str, Rank] | None
    alpha_pattern: dict[str, float] | None
    target_modules: str | list[str] | None
    modules_to_save: list[str] | None
    use_rslora: bool | None
    init_lora_weights: bool | str | None
    fan_in_fan_out: bool | None


def read_settings(folder: Path) -> dict:
    """Returns the settings of an adapter that computes W + α/r A B.

    Raises:
      ValueError: none, broken ones, or a kind of adapter that is not supported.
    """
    path = folder / FILE
    where = shown(path, 200)
    if not path.is_file():
        raise ValueError(f"{shown(folder, 200)}: expected a PEFT adapter, found no {FILE}")
    settings = read_json(path, AdapterSettings)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{where}: peft_type: expected LORA, found {shown(settings.get('peft_type'), 100)}")
    for name, expected in REFUSED.items():
        if settings.get(name) not in (expected, None, False):
            found = shown(settings[name], 100)
            raise ValueError(f"{where}: {name}: expected {expected}, found {found}; merge it with PEFT first")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in STARTS:
        raise ValueError(
            f"{where}: init_lora_weights: expected true, false, {', '.join(STARTS)}, found {shown(start, 100)}, "
            "whose start is taken from the base: save it with PEFT's save_pretrained(..., "
            "path_initial_model_for_weight_conversion=START), or merge it with PEFT first"
        )
    known = REFUSED.keys() | OBEYED | TOLD_BY_TENSORS | WITHOUT_EFFECT
    if unknown := sorted(name for name, value in settings.items() if name not in known and value):
        note(f"{where}: not known here, and passed over: {shown(', '.join(unknown), 200)}")
    if "\0" in (settings.get("base_model_name_or_path") or ""):
        raise ValueError(f"{where}: base_model_name_or_path: expected a name, found one that holds a NUL")
    return settings


def alphas(folder: Path, settings: dict, modules: Sequence[str]) -> list[float]:
    """Returns each module's α: that of the first of `alpha_pattern` that its name ends with, else the usual one.

    Raises:
      ValueError: patterns that are no regular expressions, or never end.
    """
    patterns, usual = settings.get("alpha_pattern") or {}, settings.get("lora_alpha", 8)
    if not patterns:
        return [usual] * len(modules)
    try:
        found = untrusted.ask(patterns=list(patterns), names=list(modules))
    except ValueError as error:
        told = (
            "no regular expressions: "
            if isinstance(error, untrusted.Refusal)
            else "comparing them with names "
        )
        raise ValueError(f"{shown(folder / FILE, 200)}: alpha_pattern: {told}{error}") from None
    values = list(patterns.values())
    return [usual if number is None else values[number] for number in found]
