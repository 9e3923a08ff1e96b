"""Files of weights: read whole and in shards, broken ones refused in one clear line."""

import jax
import jax.numpy as jnp
import pytest
from safetensors.flax import load_file, save_file

from dera_jax import load_policies, load_policy
from tests.support.broken_models import (
    INDEX,
    NORM,
    WEIGHTS,
    assert_same_params,
    change_tensors,
    refusal,
    shard,
)

KEY = "model.layers.0.self_attn.k_proj.weight"


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert refusal(load_policy, str(folder)) == f"{folder}: expected model.safetensors, found none"
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert refusal(load_policy, str(folder)).startswith(
        f"{folder}: expected model.safetensors, found only pytorch_model.bin; pickles are not read: convert "
    )


@pytest.mark.parametrize("size", [0, 4, 8, 100, 2_000, 5_000, 500_000, -1])
def test_truncated_weights(folder, size):
    """Cut within the header's length, the header (of some 4 000 bytes), the tensors, and by one byte."""
    file = folder / WEIGHTS
    data = file.read_bytes()[:size]
    file.write_bytes(data)
    found = refusal(load_policy, str(folder))
    assert found.startswith(f"{file}: not a whole safetensors file ({len(data)} bytes): ")


@pytest.mark.parametrize("content", [b"<html>not found</html>", (2).to_bytes(8, "little") + b"[]"])
def test_files_of_another_kind(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    assert refusal(load_policy, str(folder)).startswith(f"{folder / WEIGHTS}: not a whole safetensors file")


def test_bytes_behind_the_last_tensor(folder):
    with (folder / WEIGHTS).open("ab") as opened:
        opened.write(b"more")
    assert refusal(load_policy, str(folder)).startswith(f"{folder / WEIGHTS}: not a whole safetensors file")


TENSORS = {
    "missing": (
        None,
        "{folder}: tensor {name} is missing from the safetensors files (expected shape (40, 80))",
    ),
    "shape": (jnp.ones((41, 80)), "{file}: tensor {name}: expected shape (40, 80), found (41, 80)"),
    "transposed": (jnp.ones((80, 40)), "{file}: tensor {name}: expected shape (40, 80), found (80, 40)"),
    "whole numbers": (
        jnp.ones((40, 80), jnp.int8),
        "{file}: tensor {name}: expected one of F32, F16, BF16, found I8",
    ),
    "NaN": (
        jnp.ones((40, 80)).at[39, 79].set(jnp.nan),
        "{file}: tensor {name} holds NaN or infinite values as float32",
    ),
    "infinite": (
        jnp.ones((40, 80)).at[0, 0].set(-jnp.inf),
        "{file}: tensor {name} holds NaN or infinite values as float32",
    ),
}


@pytest.mark.parametrize(("value", "message"), TENSORS.values(), ids=TENSORS)
def test_wrong_tensors(folder, value, message):
    change_tensors(folder, **{KEY.replace(".", "__"): value})
    expected = message.format(folder=folder, file=folder / WEIGHTS, name=KEY)
    assert refusal(load_policy, str(folder)) == expected


def test_values_beyond_the_type_asked_for(folder):
    change_tensors(folder, **{NORM.replace(".", "__"): jnp.full(80, 1e5)})
    assert refusal(load_policy, str(folder), "float16") == (
        f"{folder / WEIGHTS}: tensor {NORM} holds NaN or infinite values as float16"
    )
    assert load_policy(str(folder), "bfloat16").config.dtype == "bfloat16"
    assert refusal(load_policy, str(folder), "float64") == (
        "dtype: expected one of auto, float32, float16, bfloat16, got 'float64'"
    )


def test_shards_are_the_whole(folder, toy):
    shard(folder)
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert_same_params(load_policy(str(folder)), load_policy(str(toy)))


def test_a_shard_is_missing_or_cut(folder):
    shard(folder)
    second = folder / "model-00002-of-00003.safetensors"
    second.write_bytes(second.read_bytes()[:-7])
    assert refusal(load_policy, str(folder)).startswith(f"{second}: not a whole safetensors file")
    second.unlink()
    assert refusal(load_policy, str(folder)) == f"{folder / INDEX}: names {second.name}, which is missing"


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_of_nothing(folder, content):
    shard(folder)
    (folder / INDEX).write_text(content)
    assert refusal(load_policy, str(folder)) == (
        f"{folder / INDEX}: expected an object 'weight_map' from tensors to files, found none"
    )


def test_the_type_is_that_of_the_tensors_read(folder, toy):
    """Old files hold rotary frequencies in float32 beside weights in half precision."""
    halves = {name: value.astype(jnp.bfloat16) for name, value in load_file(toy / WEIGHTS).items()}
    save_file(halves | {"model.layers.0.self_attn.rotary_emb.inv_freq": jnp.ones(4)}, folder / WEIGHTS)
    assert load_policy(str(folder)).stored_dtype == "bfloat16"
    save_file(halves | {NORM: jnp.ones(80)}, folder / WEIGHTS)
    assert load_policy(str(folder)).stored_dtype == "float32"


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_processors_compute_in_float32_unless_asked(stored, folder, toy, monkeypatch):
    save_file(
        {name: value.astype(stored) for name, value in load_file(toy / WEIGHTS).items()}, folder / WEIGHTS
    )
    asked = {dtype: load_policy(folder, dtype) for dtype in ("auto", "float32", stored)}
    assert {dtype: policy.config.dtype for dtype, policy in asked.items()} == {
        "auto": "float32", "float32": "float32", stored: stored,
    }  # fmt: skip
    assert {policy.stored_dtype for policy in asked.values()} == {stored}
    assert_same_params(asked["auto"], asked["float32"])
    (reference, aligned) = load_policies(folder, toy, as_stored=True)
    assert (reference.config.dtype, aligned.config.dtype) == (stored, "float32")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert load_policy(folder).config.dtype == stored
