"""Manifests: what their fields hold, those of runs and those of trainings, as what reads them expects it."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from dera_jax.common.differences import ABSENT, differences
from dera_jax.common.json_files import check_type, read_json
from dera_jax.common.shown import shown
from dera_jax.results.rows import Count, Number, Numbers

FORMAT = 1
"""Of a run's manifest; a folder of another format is refused."""


class Models(TypedDict, total=False):
    """Hashes of a run's parameters."""

    reference: str
    aligned: str | list[str]


class Identity(TypedDict, total=False):
    """What rows of a folder share, as far as it is looked at."""

    models: Models
    rule: str
    dtype: str
    quantization: list[str | None] | None
    decode: dict[str, Any]


LATER = ("eos", "tokenizers", "rule_code")
"""Of an identity, what older folders do not tell."""
Extent = TypedDict(
    "Extent",
    {
        "num_prompts": Count,
        "num_samples": Count,
        "lambda": list[str],
        "rewards": list[str],
        "rows": Count | None,
        "mesh": str | None,
        "beta": Numbers | None,
        "prompts": str | None,
    },
    total=False,
)
"""What of a sweep is there."""
Asked = TypedDict(
    "Asked",
    {
        "num_prompts": Count,
        "prompt_ids": NotRequired[list[int | str]],
        "num_samples": Count,
        "lambda": list[str] | Literal["prompt"],
        "ended": bool,
    },
)
"""What a command asked for, all prompts with all samples at all strengths; without `prompt_ids`, those
from 0 on. Strengths are texts, or `prompt`: each prompt's own."""


class Model(TypedDict):
    """Where a model lay."""

    name: str
    fingerprint: NotRequired[str]


class Provenance(TypedDict, total=False):
    """How something was made."""

    command: list[str]
    time: str
    device: str
    models: list[Model]
    versions: dict[str, str | None]


class Resources(TypedDict, total=False):
    """What the run that decoded last took."""

    slot_utilization: float
    shared_tokens: float
    prompt_tokens_read: Count
    prompt_tokens_cached: Count
    drafts_accepted: float
    peak_host_bytes: Count
    peak_device_bytes: Count


class RunManifest(TypedDict):
    """Of a sweep's folder, see `results.folder.RunFolder`; keys that are not named may hold anything."""

    format: int
    identity: Identity
    extent: NotRequired[Extent]
    asked: NotRequired[list[Asked]]
    provenance: NotRequired[Provenance]
    commands: NotRequired[list[Provenance]]
    judges: NotRequired[dict[str, str]]
    reward_hashes: NotRequired[dict[str, str]]
    resources: NotRequired[Resources]
    decode_seconds: NotRequired[Number]


class Preference(TypedDict, total=False):
    """How a model learned from pairs."""

    loss: str | None
    sync_ref_model: bool | None


class Place(TypedDict, total=False):
    """A model that a training began with or was held near."""

    model: str | None
    fingerprint: str | None


class Seeded(TypedDict, total=False):
    """Of a training's settings, what is repeated."""

    seed: Count


class TrainingManifest(TypedDict, total=False):
    """Of a model that our commands trained; keys that are not named may hold anything."""

    method: str | None
    beta: Annotated[float, msgspec.Meta(ge=0)] | None
    preference: Preference | None
    reference: Place | None
    target_kl: Number | None
    train_config: Seeded | None
    provenance: Provenance | None
    seconds: Number | None
    finished: bool | None


def read_manifest(run: str | Path) -> dict:
    """Returns the manifest of a run, given as its folder or its file of rows.

    Raises:
      ValueError: there is none, or it is not that of a run, or of another format, or a field is of another type.
    """
    path = manifest_path(run)
    manifest = read_json(path)
    where = shown(path, 200)
    if not isinstance(manifest, dict) or not {"format", "identity"} <= manifest.keys():
        raise ValueError(f"{where}: not the manifest of a run: it has no 'format' and 'identity'")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{where}: expected format {FORMAT}, found {shown(manifest['format'], 60)}")
    try:
        check_type(manifest, RunManifest)
        _check_quantization(manifest)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return manifest


def manifest_path(run: str | Path) -> Path:
    """Returns where the manifest of a run is, given as its folder or its file of rows."""
    run = Path(run)
    return (run if run.is_dir() else run.parent) / "manifest.json"


def _check_quantization(manifest: dict) -> None:
    kinds = manifest["identity"].get("quantization")
    models = manifest.get("provenance", {}).get("models")
    if kinds and models and len(kinds) != len(models):
        raise ValueError(
            f"at identity.quantization: expected one for each of {len(models)} models, found {len(kinds)}"
        )


def tell_difference(there: dict, here: dict, told: int = 3) -> str:
    """Returns the first keys that differ with both values, or nothing."""
    found = differences(there, here)
    parts = [
        f"{shown(name, 60)} is {_short(before)} there and {_short(now)} here"
        for name, before, now in found[:told]
    ]
    more = [f"{len(found) - told} more"] if len(found) > told else []
    if [each.name for each in found] == ["dtype"] and "dtype" in there:
        more.append(f"--dtype={shown(there['dtype'], 20)} goes on as there")
    return ", ".join(parts + more)


def _short(value: object, width: int = 40) -> str:
    text = repr(value) if value is ABSENT else shown(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= width else f"{text[: width // 2]}…{text[1 - width // 2 :]}"
