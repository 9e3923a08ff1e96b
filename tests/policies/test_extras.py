"""Tensors and files that a model does not read: none changes it without a word."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policy
from tests.support import t5_models
from tests.support.shapes import SHAPES
from tests.support.torch_models import check, random_model, save

torch = pytest.importorskip("torch")


def add(folder, **more):
    named = load_file(folder / "model.safetensors")
    save_file(named | more, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path, toy, terminal):
    save(random_model(SHAPES["llama"]), tmp_path, toy)
    terminal.readouterr()
    return tmp_path


ONE = np.ones(3, np.float32)
LAYER = "model.layers.0.self_attn."


def test_what_nothing_reads_is_named_once_with_its_number(folder, terminal):
    """A value head, biases that the settings do not want, a layer too many: passed over, as on torch."""
    more = {
        "v_head.summary.weight": np.ones((1, 64), np.float32),
        f"{LAYER}q_proj.bias": np.ones(64, np.float32),
        "model.layers.2.input_layernorm.weight": np.ones(64, np.float32),
    }
    add(folder, **more)
    for _ in range(2):
        policy = load_policy(folder)
    told = terminal.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"note: {folder}: 3 of 24 tensors are not the model's")
    assert all(name in told for name in more)
    check(policy, folder)


def test_many_are_counted(folder, terminal):
    add(folder, **{f"extra.{number}": ONE for number in range(50)})
    load_policy(folder)
    told = terminal.readouterr().err
    assert "50 of 71 tensors" in told and told.count("extra.") == 4


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": ONE, "model.rotary_emb.inv_freq": ONE}),
        ("gpt2", {"transformer.h.0.attn.bias": ONE, "transformer.h.1.attn.masked_bias": ONE}),
        (
            "gpt_neox",
            {
                "gpt_neox.layers.0.attention.bias": ONE,
                "gpt_neox.layers.0.attention.masked_bias": ONE,
                "gpt_neox.layers.0.attention.rotary_emb.inv_freq": ONE,
            },
        ),
    ],
)
def test_what_old_files_hold_beside_is_no_news(kind, more, tmp_path, toy, terminal):
    add(save(random_model(SHAPES[kind]), tmp_path, toy), **more)
    terminal.readouterr()
    policy = load_policy(tmp_path)
    assert terminal.readouterr().err == ""
    check(policy, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "q_proj.weight_scale", "q_proj.weight_scale_inv", "q_proj.weight_zero_point", "q_proj.weight_packed",
        "q_proj.qweight", "q_proj.scales", "q_proj.qzeros", "q_proj.SCB", "q_proj.weight.absmax",
        "q_proj.weight.quant_state.bitsandbytes__nf4",
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [True, False])
def test_scales_are_refused_by_name(name, beside, folder):
    named = load_file(folder / "model.safetensors")
    if not beside:
        del named[f"{LAYER}q_proj.weight"]
    save_file(named | {LAYER + name: ONE}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"expected weights in full precision, found tensor {LAYER}{name}"):
        load_policy(folder)


def test_shards_that_no_index_names(folder, terminal):
    named = load_file(folder / "model.safetensors")
    save_file(named, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    load_policy(folder)
    line = f"note: {folder}: not read, since no index names them: model-0000"
    assert terminal.readouterr().err == f"{line}1-of-00001.safetensors\n"
    (folder / "model.safetensors").rename(folder / "model-00003-of-00003.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(named, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    policy = load_policy(folder)
    assert terminal.readouterr().err == f"{line}3-of-00003.safetensors\n"
    check(policy, folder)


def test_embeddings_of_t5_that_are_one(tmp_path, terminal):
    folder = t5_models.save(t5_models.random_model({}), tmp_path)
    shared = load_file(folder / "model.safetensors")["shared.weight"]
    add(folder, **{"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared})
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    add(folder, **{name: np.ones((8, 4), np.float32)})
    terminal.readouterr()
    load_policy(folder)
    assert terminal.readouterr().err == ""
    add(folder, **{"decoder.embed_tokens.weight": shared + 1})
    with pytest.raises(ValueError, match=r"shared\.weight and decoder\.embed_tokens\.weight differ"):
        load_policy(folder)
