"""Tensors and files of a model folder that the model does not read: named once, or refused where they are its own."""

import re
from collections.abc import Collection
from pathlib import Path

from dera_jax.common.notes import note
from dera_jax.common.shown import shown
from dera_jax.policies import names, tensors

COMPUTED = re.compile(
    r"(^|\.)rotary_emb\.\w+$|(^|\.)(attn|attention)\.(masked_)?bias$|EncDecAttention\.relative_attention_bias\.weight$"
)
"""What old files hold of what every model computes for itself: angles, masks, and a bias that T5 never reads."""
SCALES = re.compile(
    r"\.(weight_scale(_\w+)?|weight_zero_point|weight_packed|qweight|qzeros|scales|SCB|scale_inv)$"
    r"|\.weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)$"
)
"""What quantized weights are multiplied by, or are kept as."""
NAMED = 4
"""Tensors that are named, at most."""


def check_scales(folder: Path, listed: Collection[str]) -> None:
    """Raises ValueError where a file says how its weights were quantized, whatever its settings say."""
    scale = next(filter(SCALES.search, listed), None)
    if scale is not None:
        raise ValueError(
            f"{shown(folder, 200)}: expected weights in full precision, found tensor {shown(scale, 200)}, which "
            "quantized ones are read with; take the model that they were made from, with --quantize=int8 or nf4"
        )


def check_rest(
    folder: Path, name_map: names.NameMap, listed: dict[str, tensors.Tensor], used: Collection[str]
) -> None:
    """Names the tensors and the shards that nothing reads, in a line each.

    Args:
      used: names of the tensors that the model is made of.

    Raises:
      ValueError: one that ought to be the same as another that is read, and differs.
    """
    rest = {name for name in listed if name not in used and not COMPUTED.search(name)}
    # A head that is tied was compared already, and a reward model has no use of one.
    rest -= {str(name) for path, name in name_map.names.items() if path.endswith("head.kernel")}
    for name, others in name_map.others.items():
        same = [one for one in (name, *others) if one in listed]
        for other in rest & {*same[1:]}:
            if not tensors.equal(listed[same[0]], listed[other]):
                raise ValueError(
                    f"{shown(folder, 200)}: tensors {same[0]} and {other} differ, of a model in which they are one"
                )
        rest -= {*same}
    if rest:
        some = ", ".join(sorted(rest)[:NAMED]) + ", …" * (len(rest) > NAMED)
        note(
            f"{shown(folder, 200)}: {len(rest)} of {len(listed)} tensors are not the model's, as config.json has it, "
            f"and not read: {shown(some, 400)}"
        )
    read = {file.name for file in tensors.weight_files(folder)}
    if stale := sorted({file.name for file in folder.glob("model-*.safetensors")} - read):
        told = shown(", ".join(stale[:NAMED]) + ", …" * (len(stale) > NAMED), 400)
        note(f"{shown(folder, 200)}: not read, since no index names them: {told}")
