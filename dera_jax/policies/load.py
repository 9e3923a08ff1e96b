"""Policies: language models ready to decode, from Hugging Face folders and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import Mesh

from dera_jax import models
from dera_jax.common.checks import check_choice
from dera_jax.common.choices import QUANTIZATIONS
from dera_jax.common.shown import shown
from dera_jax.devices import placement
from dera_jax.policies import adapters, families, hub, settings, tensors, tokenizers, value_heads, weights
from dera_jax.policies.policy import DTYPES, TOY, Policy, find_eos_ids
from dera_jax.policies.tokenizers import check_same_vocabulary, load_tokenizer

Started = Callable[[str, int], weights.Seen]
"""Told the name of a model and its bytes as loading starts; returns what is told of bytes that were read."""


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
    reference_instruction: str | None = None,
    aligned_instruction: str | Sequence[str | None] | None = None,
    started: Started | None = None,
    mesh: Mesh | None = None,
    as_stored: bool = False,
) -> tuple[Policy, ...]:
    """Returns the reference and the aligned policies, in that order.

    A base that several of them stand on (`BASE+ADAPTER`) is read and held once. The last aligned model may be a
    value head on the reference, for rules that take one (`--rule=tilt`).

    Args:
      reference: MODEL, a folder or hub id, optionally with an adapter; None is the shipped toy pair.
      aligned: one MODEL or several (Appendix B).
      dtype: of parameters and activations: float32, bfloat16, float16 or auto: the files' own, but float32
        on CPUs, which compute faster in it and then take twice the memory of 16-bit types.
      quantize: int8 or nf4 for all; or one for each model, the reference first, None for full precision.
      chat_template: text of the template of all models (default: the aligned model's own, else the
        reference's).
      reference_chat_template: of the reference alone, which then reads another text; empty puts a blank
        line between the messages and has no template.
      reference_instruction: what the reference alone is told beside every task, such as the opposite of what is
        wanted.
      aligned_instruction: what the aligned models alone are told beside every task, see `data.instructions`: the
        same model as reference and aligned is then realigned towards what the instruction changes. One for all, or
        one for each, None for nothing: contrasts of several pairs of prompts.
      started: shows progress.
      mesh: devices that parameters are split over, and rows decoded on; None is one device.
      as_stored: whether auto is the files' own on CPUs too, for models that are to be saved again.

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
    loaded: list[Policy] = []
    for number, (name, kind) in enumerate(zip(names, kinds, strict=True), 1):
        if number > 1 and number == len(names) and value_heads.is_value_model(name):
            loaded.append(value_heads.load_value_head(name, loaded[0], mesh))
        else:
            loaded.append(_load(name, dtype, kind, started, bases, mesh, as_stored))
    policies = tuple(loaded)
    for policy in policies[1:]:
        check_same_vocabulary(policies[0].tokenizer, policy.tokenizer, (policies[0].name, policy.name))
    if chat_template is not None:
        policies = tuple(replace(policy, template=chat_template) for policy in policies)
    if reference_chat_template is not None:
        policies = tuple(
            replace(policy, template=reference_chat_template) if number == 0 or policy.value_of else policy
            for number, policy in enumerate(policies)
        )
    # A value head reads what its reference reads.
    of_reference = [number == 0 or policy.value_of is not None for number, policy in enumerate(policies)]
    told = [reference_instruction, *_for_each(aligned_instruction, policies[1:])]
    return tuple(
        replace(policy, instruction=reference_instruction if own else text, reads_contrast=own)
        for policy, own, text in zip(policies, of_reference, told, strict=True)
    )


def _for_each(
    instruction: str | Sequence[str | None] | None, aligned: Sequence[Policy]
) -> Sequence[str | None]:
    """Returns the instruction of each aligned model, of one for all or one for each."""
    given = [instruction] if instruction is None or isinstance(instruction, str) else instruction
    if not isinstance(given, Sequence) or not all(text is None or isinstance(text, str) for text in given):
        raise TypeError(f"aligned_instruction: expected a text, or a list of them, found {instruction!r:.60}")
    given = list(given)
    if len(given) == 1:
        return given * len(aligned)
    if len(given) != len(aligned):
        raise ValueError(
            f"aligned_instruction: expected one, or one for each of {len(aligned)} models, found {len(given)}"
        )
    for policy, text in zip(aligned, given, strict=True):
        if policy.value_of is not None and text is not None:
            raise ValueError(
                f"{policy.name}: a value head reads what the reference reads; expected none, found {text!r}"
            )
    return given


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


def load_value_policy(model: str | Path, dtype: str = "auto") -> Policy:
    """Returns the value head of a MODEL on the language model that it names, which is loaded with it.

    Its `step` and `completion_logits` give values in the place of logits.

    Raises:
      ValueError: no value head; files that are missing, broken or of another model.
    """
    folder = hub.resolve(str(model))
    if not value_heads.is_value_folder(folder):
        raise ValueError(f"{shown(folder, 200)}: expected a value head, found no {value_heads.CONFIG}")
    try:
        reference = load_policy(value_heads.read_settings(folder)["reference"], dtype)
    except ValueError as error:
        raise ValueError(f"{shown(folder / value_heads.CONFIG, 200)}: reference: {error}") from None
    return value_heads.load_value_head(str(model), reference)


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
    if value_heads.is_value_folder(folder):
        raise ValueError(
            f"{shown(name, 200)}: expected a language model, found {value_heads.USE}; it is the last model of "
            "--aligned with --rule=tilt, and the score value:DIR"
        )
    # All that is small before the base's weights, which may take minutes.
    raw = families.read_config(folder)
    families.check_language_model(folder, raw)
    config = families.model_config(folder, raw)
    adapter = adapters.read_adapter(hub.resolve(adapter_name)) if adapter_name else None
    own = adapter.folder if adapter and (adapter.folder / "tokenizer_config.json").exists() else folder
    tokenizer = load_tokenizer(own)
    eos_ids = find_eos_ids(folder, raw, tokenizer)
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
        params = placement.shard_flat(params, mesh) if mesh else params
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
        tokenizer_fingerprint=tokenizers.fingerprint(own),
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
        placement.check_heads(mesh, name, config)
    found = weights.find_params(folder, raw["model_type"], config)
    stored = weights.common_dtype(found, raw.get("dtype") or raw.get("torch_dtype"))
    if dtype == "auto":
        dtype = stored if as_stored else weights.computed_dtype(stored)
    seen = started(name, weights.count_bytes(config, dtype)) if started else lambda _: None
    place = placement.place(mesh) if mesh else None
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
        model, folder, config, params, tokenizer, find_eos_ids(folder, raw, tokenizer), f"random-{seed}"
    )
