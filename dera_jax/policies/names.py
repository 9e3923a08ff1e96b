"""What each family calls its tensors, and how they lie in its files.

A name map goes from our parameter paths to the names in files, `{}` standing for the layer's number.
Ours are kernels [inputs, outputs], one for each of query, key and value.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Part:
    """One of several of our tensors that a file keeps as one, along its outputs."""

    name: str
    number: int
    count: int = 3
    per_head: bool = False
    """Whether the parts take turns head by head."""


@dataclass(frozen=True)
class NameMap:
    """The tensors of a family."""

    names: dict[str, str | Part]
    """Our parameter path to the file's tensor name."""
    trunk: str
    """What the names of a model without its head begin with; files may leave it out."""
    inputs_first: bool = False
    """Whether files keep the linear maps of layers as [inputs, outputs]."""
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a tensor, the names that a file may keep it under instead."""


@dataclass(frozen=True)
class Source:
    """Where one of our parameters is in a file: a tensor, a part of it, and how it lies there."""

    name: str
    transposed: bool
    """Whether the file's tensor is [outputs, inputs] and ours [inputs, outputs]."""
    part: Part | None = None
    groups: int = 1
    """How often the parts take turns along the outputs."""

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the file's tensor for our parameter of shape `ours`."""
        count = self.part.count if self.part else 1
        whole = (*ours[:-1], ours[-1] * count)
        return whole[::-1] if self.transposed else whole

    def ours(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of our parameter for a file's tensor of this shape."""
        *inputs, outputs = shape[::-1] if self.transposed else shape
        return (*inputs, outputs // (self.part.count if self.part else 1))

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """Returns our parameter from the file's tensor."""
        ours = tensor.T if self.transposed else tensor
        if self.part is None:
            return ours
        split = ours.reshape(*ours.shape[:-1], self.groups, self.part.count, -1)
        return split[..., self.part.number, :].reshape(*ours.shape[:-1], -1)


LLAMA = NameMap(
    {
        "embed.embedding": "model.embed_tokens.weight",
        "blocks.{}.attention_norm.scale": "model.layers.{}.input_layernorm.weight",
        "blocks.{}.attention.query.kernel": "model.layers.{}.self_attn.q_proj.weight",
        "blocks.{}.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
        "blocks.{}.attention.query_norm.scale": "model.layers.{}.self_attn.q_norm.weight",
        "blocks.{}.attention.key.kernel": "model.layers.{}.self_attn.k_proj.weight",
        "blocks.{}.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
        "blocks.{}.attention.key_norm.scale": "model.layers.{}.self_attn.k_norm.weight",
        "blocks.{}.attention.value.kernel": "model.layers.{}.self_attn.v_proj.weight",
        "blocks.{}.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
        "blocks.{}.attention.out.kernel": "model.layers.{}.self_attn.o_proj.weight",
        "blocks.{}.attention.out.bias": "model.layers.{}.self_attn.o_proj.bias",
        "blocks.{}.feed_forward_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
        "blocks.{}.feed_forward.gate.kernel": "model.layers.{}.mlp.gate_proj.weight",
        "blocks.{}.feed_forward.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
        "blocks.{}.feed_forward.up.kernel": "model.layers.{}.mlp.up_proj.weight",
        "blocks.{}.feed_forward.up.bias": "model.layers.{}.mlp.up_proj.bias",
        "blocks.{}.feed_forward.down.kernel": "model.layers.{}.mlp.down_proj.weight",
        "blocks.{}.feed_forward.down.bias": "model.layers.{}.mlp.down_proj.bias",
        "norm.scale": "model.norm.weight",
        "head.kernel": "lm_head.weight",
    },
    trunk="model.",
)
AFTER = {
    "blocks.{}.post_attention_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.post_feed_forward_norm.scale": "model.layers.{}.post_feedforward_layernorm.weight",
}
OLMO2 = NameMap(LLAMA.names | AFTER, trunk="model.")
GEMMA2 = NameMap(
    LLAMA.names
    | AFTER
    | {"blocks.{}.feed_forward_norm.scale": "model.layers.{}.pre_feedforward_layernorm.weight"},
    trunk="model.",
)


def _with_biases(kernels: dict[str, str | Part]) -> dict[str, str | Part]:
    """Returns the names of kernels (or scales) and of the biases beside them."""
    both = dict(kernels)
    for path, found in kernels.items():
        bias = path.rpartition(".")[0] + ".bias"
        if isinstance(found, Part):
            name = found.name.removesuffix("weight") + "bias"
            both[bias] = Part(name, found.number, found.count, found.per_head)
        else:
            both[bias] = found.removesuffix("weight") + "bias"
    return both


GPT2 = NameMap(
    {
        "embed.embedding": "transformer.wte.weight",
        "positions.embedding": "transformer.wpe.weight",
        "head.kernel": "lm_head.weight",
    }
    | _with_biases(
        {
            "blocks.{}.attention_norm.scale": "transformer.h.{}.ln_1.weight",
            "blocks.{}.attention.query.kernel": Part("transformer.h.{}.attn.c_attn.weight", 0),
            "blocks.{}.attention.key.kernel": Part("transformer.h.{}.attn.c_attn.weight", 1),
            "blocks.{}.attention.value.kernel": Part("transformer.h.{}.attn.c_attn.weight", 2),
            "blocks.{}.attention.out.kernel": "transformer.h.{}.attn.c_proj.weight",
            "blocks.{}.feed_forward_norm.scale": "transformer.h.{}.ln_2.weight",
            "blocks.{}.feed_forward.up.kernel": "transformer.h.{}.mlp.c_fc.weight",
            "blocks.{}.feed_forward.down.kernel": "transformer.h.{}.mlp.c_proj.weight",
            "norm.scale": "transformer.ln_f.weight",
        }
    ),
    trunk="transformer.",
    inputs_first=True,
)
_NEOX_QKV = "gpt_neox.layers.{}.attention.query_key_value.weight"
GPT_NEOX = NameMap(
    {"embed.embedding": "gpt_neox.embed_in.weight", "head.kernel": "embed_out.weight"}
    | _with_biases(
        {
            "blocks.{}.attention_norm.scale": "gpt_neox.layers.{}.input_layernorm.weight",
            "blocks.{}.attention.query.kernel": Part(_NEOX_QKV, 0, per_head=True),
            "blocks.{}.attention.key.kernel": Part(_NEOX_QKV, 1, per_head=True),
            "blocks.{}.attention.value.kernel": Part(_NEOX_QKV, 2, per_head=True),
            "blocks.{}.attention.out.kernel": "gpt_neox.layers.{}.attention.dense.weight",
            "blocks.{}.feed_forward_norm.scale": "gpt_neox.layers.{}.post_attention_layernorm.weight",
            "blocks.{}.feed_forward.up.kernel": "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight",
            "blocks.{}.feed_forward.down.kernel": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
            "norm.scale": "gpt_neox.final_layer_norm.weight",
        }
    ),
    trunk="gpt_neox.",
)
_T5_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_T5_LAYERS = {
    "attention": ("SelfAttention", _T5_ATTENTION),
    "cross_attention": ("EncDecAttention", _T5_ATTENTION),
    "feed_forward": ("DenseReluDense", {"up": "wi", "gate": "wi_0", "linear": "wi_1", "down": "wo"}),
}


def _t5_stack(stack: str, layers: Iterable[str]) -> dict[str, str]:
    """Returns the names of the encoder or of the decoder."""
    found = {
        f"{stack}.bias.embedding": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        f"{stack}.norm.scale": f"{stack}.final_layer_norm.weight",
    }
    for number, layer in enumerate(layers):
        ours, theirs = f"{stack}.blocks.{{}}.{layer}", f"{stack}.block.{{}}.layer.{number}"
        module, maps = _T5_LAYERS[layer]
        found[f"{ours}_norm.scale"] = f"{theirs}.layer_norm.weight"
        found |= {f"{ours}.{name}.kernel": f"{theirs}.{module}.{own}.weight" for name, own in maps.items()}
    return found


T5 = NameMap(
    {"embed.embedding": "shared.weight", "head.kernel": "lm_head.weight"}
    | _t5_stack("encoder", ("attention", "feed_forward"))
    | _t5_stack("decoder", ("attention", "cross_attention", "feed_forward")),
    trunk="",
    others={
        "shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    },
)


def sources(names: NameMap, paths: Iterable[str], num_heads: int) -> dict[str, Source]:
    """Returns where in the files each of our parameters is, such as `blocks.3.attention.query.kernel`."""
    found = {}
    for path in paths:
        parts = path.split(".")
        numbers = [part for part in parts if part.isdigit()]
        name = names.names[".".join("{}" if part.isdigit() else part for part in parts)]
        part = name if isinstance(name, Part) else None
        pattern = part.name if part else name
        found[path] = Source(
            pattern.format(*numbers),
            transposed=path.endswith(".kernel") and not (names.inputs_first and numbers),
            part=part,
            groups=num_heads if part and part.per_head else 1,
        )
    return found


def join(params: dict[str, np.ndarray], where: dict[str, Source]) -> dict[str, np.ndarray]:
    """Returns our parameters as the tensors of a file, by their names there."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, value in params.items():
        source = where[path]
        parts.setdefault(source.name, {})[source.part.number if source.part else 0] = value
    by_name = {source.name: source for source in where.values()}
    return {name: _join(values, by_name[name]) for name, values in parts.items()}


def _join(values: dict[int, np.ndarray], source: Source) -> np.ndarray:
    ordered = [values[number] for number in sorted(values)]
    whole = ordered[0]
    if source.part:
        split = [v.reshape(*v.shape[:-1], source.groups, 1, -1) for v in ordered]
        whole = np.concatenate(split, axis=-2).reshape(*whole.shape[:-1], -1)
    return whole.T if source.transposed else whole


def find(name: str, names: NameMap, there: Collection[str]) -> str | None:
    """Returns `name` as it is among the names of a file, whose trunk may stand alone; None if it is not."""
    for candidate in (name, name.removeprefix(names.trunk), *names.others.get(name, ())):
        if candidate in there:
            return candidate
    return None
