"""`adapter_config.json` of a PEFT adapter: what is read of it, and its patterns of names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from dera_jax import untrusted
from dera_jax.files import read_json
from dera_jax.shown import shown

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
}
"""Settings that change what an adapter computes; supported is only their default."""
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
