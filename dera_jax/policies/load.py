"""Policies: language models ready to decode, from Hugging Face folders and back."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from dera_jax import models, sharding, tokenizer_files
from dera_jax.configs import check_choice, check_count, check_number, check_seed
from dera_jax.files import write_json
from dera_jax.loading import adapters, families, hub, lora, manifests, settings, tensors, weights
from dera_jax.loading.names import NameMap
from dera_jax.models.linear import QUANTIZATIONS
from dera_jax.tokenizer import check_same_vocabulary, load_tokenizer, save_tokenizer

TOY = Path(__file__).parent / "assets" / "toy"
"""The shipped pair."""
DTYPES = ("auto", *tensors.DTYPES.values())

Started = Callable[[str, int], weights.Seen]
"""Told the name of a model and its bytes as loading starts; returns what is told of bytes that were read."""


@dataclass(frozen=True)
class Policy:
    """One language model."""

    name: str
    """As the user wrote it."""
    folder: Path
    """Of the base, where there is an adapter."""
    config: models.ModelConfig
    params: dict
    """Nested dict of arrays, as `models.param_shapes(config)`; policies on one base share its arrays."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    """Ids that end a completion, of generation_config, config and tokenizer together."""
    fingerprint: str
    """Hash of configuration and weights."""
    beta: float | None = None
    """KL strength it was aligned with, where its manifest tells."""
    template: str | None = None
    """Chat template that it reads `messages` through; empty: their contents as raw text. None: the aligned
    model's, or else the reference's, as all models do."""
    adapter: Path | None = None
    """Folder of the adapter that it was loaded with."""
    tokenizer_fingerprint: str | None = None
    """Hash of the files of tokenizer and chat template."""
    stored_dtype: str | None = None
    """Type of the base's tensors in its files; None where it is from no files."""


@dataclass(frozen=True)
class _Base:
    """A model without adapter, as several policies may stand on it."""

    config: models.ModelConfig
    params: dict
    fingerprint: str
    stored_dtype: str


def load_policies(
    reference: str | Path | None = None,
    aligned: str | Path | Sequence[str | Path] | None = None,
    dtype: str = "auto",
    *,
    quantize: str | Sequence[str | None] | None = None,
    chat_template: str | None = None,
    reference_chat_template: str | None = None,
    started: Started | None = None,
    mesh: Mesh | None = None,
    as_stored: bool = False,
) -> tuple[Policy, ...]:
    """Returns the reference and the aligned policies, in that order.

    A base that several of them stand on (`BASE+ADAPTER`) is read and held once.

    Args:
      reference: MODEL, a folder or hub id, optionally with an adapter; None is the shipped toy pair.
      aligned: one MODEL or several (Appendix B).
      dtype: of parameters and activations: float32, bfloat16, float16 or auto: the files' own, but float32
        on processors, which compute faster in it, with twice the memory of 16-bit types.
      quantize: int8 or nf4 for all; or one for each model, the reference first, None for full precision.
      chat_template: text of the template of all models (default: the aligned model's own, else the
        reference's).
      reference_chat_template: of the reference alone, which then reads another text; empty puts a blank
        line between the messages and has no template.
      started: shows progress.
      mesh: devices that parameters are split over, and rows decoded on; None is one device.
      as_stored: whether auto is the files' own on processors too, for models that are to be saved again.

    Raises:
      ValueError: a model that cannot be loaded, vocabularies that differ, or a mesh that does not divide
        a model's heads.
    """
    if reference is None and aligned is None:
        reference, aligned = TOY / "reference", TOY / "aligned"
    if reference is None or aligned is None:
        raise ValueError(
            "expected both a reference and an aligned model (or neither, for the shipped toy pair)"
        )
    aligned = [aligned] if isinstance(aligned, str | Path) else aligned
    if not isinstance(aligned, Sequence) or not all(isinstance(x, str | Path) for x in (reference, *aligned)):
        raise TypeError(
            f"expected models as text or paths, several aligned ones in a list; found {reference!r:.40} and "
            f"{aligned!r:.60}"
        )
    if not aligned:
        raise ValueError("expected at least one aligned model, found none")
    names = [str(model) for model in (reference, *aligned)]
    kinds = [quantize] * len(names) if quantize is None or isinstance(quantize, str) else list(quantize)
    if len(kinds) != len(names):
        raise ValueError(f"quantize: expected one for each of {len(names)} models, found {len(kinds)}")
    bases: dict[tuple, _Base] = {}
    policies = tuple(
        _load(name, dtype, kind, started, bases, mesh, as_stored)
        for name, kind in zip(names, kinds, strict=True)
    )
    for policy in policies[1:]:
        check_same_vocabulary(policies[0].tokenizer, policy.tokenizer, (policies[0].name, policy.name))
    if chat_template is not None:
        policies = tuple(replace(policy, template=chat_template) for policy in policies)
    if reference_chat_template is not None:
        policies = (replace(policies[0], template=reference_chat_template), *policies[1:])
    return policies


def load_policy(
    model: str | Path,
    dtype: str = "auto",
    *,
    quantize: str | None = None,
    started: Started | None = None,
    mesh: Mesh | None = None,
    as_stored: bool = False,
) -> Policy:
    """Returns the policy of a MODEL argument, `BASE[@revision][+ADAPTER[@revision]]`.

    Raises:
      ValueError: files that are missing, broken or of an unsupported kind; weights that are not finite.
    """
    return _load(str(model), dtype, quantize, started, {}, mesh, as_stored)


def _load(
    model: str,
    dtype: str,
    quantize: str | None,
    started: Started | None,
    bases: dict[tuple, _Base],
    mesh: Mesh | None,
    as_stored: bool,
) -> Policy:
    check_choice("dtype", dtype, DTYPES)
    if quantize is not None:
        check_choice("quantize", quantize, QUANTIZATIONS)
    name, adapter_name = hub.split_adapter(model)
    folder = hub.resolve(name)
    # All that is small before the base's weights, which may take minutes.
    raw = families.read_config(folder)
    families.check_language_model(folder, raw)
    config = families.model_config(folder, raw)
    adapter = adapters.read_adapter(hub.resolve(adapter_name)) if adapter_name else None
    own = adapter.folder if adapter and (adapter.folder / "tokenizer_config.json").exists() else folder
    tokenizer = load_tokenizer(own)
    eos_ids = _eos_ids(folder, raw, tokenizer)
    beta = settings.read_beta(adapter.folder if adapter else folder)
    key = folder.resolve(), dtype, quantize
    if key not in bases:
        bases[key] = _load_base(
            name, folder, raw, replace(config, quantization=quantize), dtype, started, mesh, as_stored
        )
    base = bases[key]
    config, params, fingerprint = base.config, base.params, base.fingerprint
    if adapter:
        name_map = families.FAMILIES[raw["model_type"]].names
        adapters.check_base(adapter, name, fingerprint)
        config, params = adapters.apply_adapter(adapter, name, config, params, name_map)
        params = sharding.shard_flat(params, mesh) if mesh else params
    if families.is_untied_by_files(folder, raw, base.config):
        # Rows of before, when the settings decided, are another model's.
        fingerprint = tensors.mark(fingerprint, "untied by the files")
    if adapter:
        fingerprint = adapters.fingerprint(adapter, fingerprint)
    return Policy(
        name=model,
        folder=folder,
        config=config,
        params=params,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        fingerprint=fingerprint,
        beta=beta,
        adapter=adapter.folder if adapter else None,
        tokenizer_fingerprint=tokenizer_files.fingerprint(own),
        stored_dtype=base.stored_dtype,
    )


def _load_base(
    name: str,
    folder: Path,
    raw: dict,
    config: models.ModelConfig,
    dtype: str,
    started: Started | None,
    mesh: Mesh | None,
    as_stored: bool,
) -> _Base:
    if mesh:
        sharding.check_heads(mesh, name, config)
    found = weights.find_params(folder, raw["model_type"], config)
    stored = weights.common_dtype(found, raw.get("dtype") or raw.get("torch_dtype"))
    if dtype == "auto":
        dtype = stored if as_stored else weights.computed_dtype(stored)
    seen = started(name, weights.count_bytes(config, dtype)) if started else lambda _: None
    place = sharding.place(mesh) if mesh else None
    fingerprint = tensors.start_fingerprint(folder / "config.json", tensors.weight_files(folder))
    return _Base(
        config=replace(config, dtype=dtype),
        params=weights.read_params(found, dtype, place, config.quantization, seen),
        fingerprint=fingerprint(),
        stored_dtype=stored,
    )


def fresh_policy(model: str, seed: int, dtype: str = "float32") -> Policy:
    """Returns a policy with MODEL's configuration and tokenizer and random parameters."""
    folder = hub.resolve(model)
    raw = families.read_config(folder)
    config = replace(families.model_config(folder, raw), dtype="float32" if dtype == "auto" else dtype)
    tokenizer = load_tokenizer(folder)
    params = models.init_params(config, seed)
    return Policy(
        model, folder, config, params, tokenizer, _eos_ids(folder, raw, tokenizer), f"random-{seed}"
    )


def save_policy(policy: Policy, folder: str | Path, manifest: dict | None = None) -> None:
    """Writes a policy as a folder that `transformers` loads: the weights, then what says that they are whole.

    Adapters are merged into the weights.

    Args:
      manifest: how the policy was made; written last, as manifest.json.

    Raises:
      ValueError: the folder cannot be written, or the weights are quantized.
    """
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


def with_lora(
    policy: Policy,
    rank: int,
    alpha: float,
    targets: lora.Targets = "all-linear",
    seed: int = 0,
    *,
    rslora: bool = False,
) -> Policy:
    """Returns `policy` with low-rank adapters that change nothing yet; arrays of the base are shared.

    A policy that has these very adapters already is returned as it is, to be trained further.

    Args:
      rank: of every adapter, ≥ 1.
      alpha: > 0; an adapter is multiplied by alpha/rank, or by alpha/√rank with `rslora`.
      targets: names of linear maps in the family's files, such as `q_proj`; `all-linear`: all but the
        head; None: those of queries and values.

    Raises:
      ValueError: a setting out of its range, names that the model does not have, other adapters on it.
    """
    check_count("rank", rank)
    check_number("alpha", alpha, 0.0, math.inf)
    if alpha == 0:
        raise ValueError("alpha: expected a number above 0, got 0")
    check_seed(seed)
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    paths = lora.adapted_maps(policy.config, _name_map(policy), targets)
    there = policy.config.adapters
    if not there:
        config, params = lora.add_adapters(policy.config, policy.params, paths, rank, scale, seed)
        return replace(policy, config=config, params=params)
    asked = {(path, rank, round(scale, 9)) for path in paths}
    if {(one.path, one.rank, round(one.scale, 9)) for one in there} != asked:
        raise ValueError(
            f"{policy.name}: has adapters of rank {there[0].rank} and scale {there[0].scale:g} on {len(there)} "
            f"linear maps, asked: rank {rank} and scale {scale:g} on {len(paths)}; "
            "train those further, or start from a model that they are merged into"
        )
    return policy


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
    lora.write_adapter(folder, policy.config, policy.params, _name_map(policy), base_name, start)
    if manifest is not None:
        manifests.write_manifest(folder, manifest)


def _name_map(policy: Policy) -> NameMap:
    return families.FAMILIES[families.read_config(policy.folder)["model_type"]].names


def with_params(policy: Policy, params: dict) -> Policy:
    """Returns `policy` with other parameters; nothing is compiled again."""
    return replace(policy, params=params)


def held_bytes(policies: Sequence[Policy]) -> int:
    """Returns the bytes that the parameters of `policies` take, shared ones counted once."""
    arrays = {id(a): a for policy in policies for a in jax.tree.leaves(policy.params)}
    return sum(a.nbytes for a in arrays.values())


def _eos_ids(folder: Path, raw: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    ids: set[int] = set()
    for value in (
        settings.read_generation(folder).get("eos_token_id"),
        raw.get("eos_token_id"),
        tokenizer.eos_token_id,
    ):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))
