"""Loading and saving: whole folders come back the same, broken ones are refused in one clear line."""

import json
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file, save_file

from dera_jax import load_policies, load_policy, save_policy
from dera_jax.models.trees import flatten
from dera_jax.policies.load import fresh_policy
from dera_jax.policies.policy import with_params
from dera_jax.policies.tokenizers import load_tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.2.input_layernorm.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    """A copy of a whole model, to be broken."""
    (tmp_path / "model").mkdir()
    for file in toy.iterdir():
        shutil.copyfile(file, tmp_path / "model" / file.name)
    return tmp_path / "model"


def refusal(function, *args) -> str:
    """Returns the one line that a call is refused with."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_json(file, **fields):
    raw = json.loads(file.read_text()) if file.exists() else {}
    raw = {name: value for name, value in (raw | fields).items() if value is not ...}
    file.write_text(json.dumps(raw))


def change_tensors(folder, **tensors):
    """Puts other tensors in place of those of these names (their dots as __); None takes one out."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    kept = {name: value for name, value in (load_file(folder / WEIGHTS) | named).items() if value is not None}
    save_file(kept, folder / WEIGHTS)


def shard(folder, parts=3):
    """Replaces the one file by several and an index."""
    tensors, files = load_file(folder / WEIGHTS), {}
    for number in range(parts):
        file = f"model-{number + 1:05}-of-{parts:05}.safetensors"
        names = sorted(tensors)[number::parts]
        save_file({name: tensors[name] for name in names}, folder / file)
        files |= dict.fromkeys(names, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def assert_same_params(one, other):
    one, other = flatten(one.params), flatten(other.params)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], strict=True)


# config.json


CONFIGS = {
    "another architecture": ({"model_type": "bert"}, "model_type 'bert' is not supported; supported: llama"),
    "no architecture": ({"model_type": ...}, "model_type None is not supported; supported: llama"),
    "code of its own": (
        {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
        "the model brings its own code (auto_map), which is never run",
    ),
    "rope": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type: expected one of default, linear, llama3, yarn, got 'dynamic'",
    ),
    "rope as it was": (
        {"rope_parameters": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type: expected one of default, linear, llama3, yarn, got 'dynamic'",
    ),
    "no factor": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
    "theta": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        "rope_theta: expected a number from 1 to inf, got 0.0",
    ),
    "activation": (
        {"hidden_act": "selu"},
        "activation: expected one of silu, swish, relu, relu2, gelu, gelu_python, gelu_new, gelu_pytorch_tanh",
    ),
    "a text for a number": ({"hidden_size": "64"}, "at hidden_size: expected a whole number, found a text"),
    "heads": ({"num_key_value_heads": 3}, "num_kv_heads: expected a divisor of num_heads (8), got 3"),
    "no layers": ({"num_hidden_layers": 0}, "at num_hidden_layers: expected a whole number >= 1, found 0"),
}


@pytest.mark.parametrize(("fields", "message"), CONFIGS.values(), ids=CONFIGS)
def test_unsupported_settings(folder, fields, message):
    change_json(folder / "config.json", **fields)
    found = refusal(load_policy, str(folder))
    assert found.startswith(f"{folder / 'config.json'}: ") and message in found


def test_no_folder(tmp_path, folder):
    missing = tmp_path / "missing"
    assert (
        refusal(load_policy, str(missing))
        == f"{missing}: no such folder (and not a hub id of the form org/name)"
    )
    assert refusal(load_policy, str(folder / WEIGHTS)).endswith(
        "no such folder (and not a hub id of the form org/name)"
    )
    assert refusal(load_policy, f"{folder}@main") == (
        f"{folder}@main: a folder has no revisions; expected a hub id before the @"
    )


@pytest.mark.parametrize("load", [load_policy, lambda model: fresh_policy(model, 0)])
def test_no_config(folder, load):
    (folder / "config.json").unlink()
    assert (
        refusal(load, str(folder)) == f"{folder}: expected a Hugging Face model folder, found no config.json"
    )


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "llama",\n', "not JSON: "),
        (b"\xff\xfe\xfd", "not JSON: "),
        (b"[1, 2]", "expected an object, found a list"),
    ],
)
def test_broken_json(folder, name, content, message):
    (folder / name).write_bytes(content)
    assert refusal(load_policy, str(folder)).startswith(f"{folder / name}: {message}")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfd", b"[1, 2]", b"null", b"[" * 100_000])
def test_a_manifest_of_something_else(folder, content, capsys):
    """Other tools write files of that name; one that is no object is none of ours."""
    (folder / "manifest.json").write_bytes(content)
    assert load_policy(str(folder)).beta is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"passed over, so β is not known from it: {folder / 'manifest.json'}: ")


# Weights


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


def test_saving_over_shards(folder):
    """What was saved last is what is loaded, by transformers too, which looks for the one file first."""
    shard(folder)
    policy = load_policy(str(folder))
    halved = with_params(policy, jax.tree.map(lambda a: a / 2, policy.params))
    save_policy(halved, folder)
    assert_same_params(load_policy(str(folder)), halved)


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


# Pairs, EOS, β


def test_pairs_need_both(toy):
    expected = "expected both a reference and an aligned model (or neither, for the shipped toy pair)"
    assert refusal(load_policies, str(toy)) == expected
    assert refusal(load_policies, None, str(toy)) == expected


def test_several_aligned_models(toy, folder):
    policies = load_policies(toy, [str(folder), toy])
    assert [policy.name for policy in policies] == [str(toy), str(folder), str(toy)]


def test_vocabularies_that_differ(toy, folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    assert refusal(load_policies, str(toy), str(folder)) == (
        f"the models have different vocabularies: '<new>' is absent in {toy} (512 words) "
        f"and 512 in {folder} (513 words)"
    )
    # As many words, and the same, but two of them in each other's place.
    shutil.copyfile(toy / "tokenizer.json", folder / "tokenizer.json")
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    vocab["Ġis"], vocab["Ġthe"] = vocab["Ġthe"], vocab["Ġis"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert refusal(load_policies, str(toy), str(folder)) == (
        f"the models have different vocabularies: 'Ġis' is {vocab['Ġthe']} in {toy} (512 words) "
        f"and {vocab['Ġis']} in {folder} (512 words)"
    )


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert refusal(load_policy, str(folder)).startswith(f"{folder}: the tokenizer cannot be read: ")
    (folder / "tokenizer.json").unlink()
    assert (
        refusal(load_policy, str(folder))
        == f"{folder}: expected tokenizer files (tokenizer.json), found none"
    )


def test_eos_is_what_any_of_three_files_says(folder):
    assert load_policy(str(folder)).eos_ids == (2,)
    change_json(folder / "config.json", eos_token_id=7)
    change_json(folder / "generation_config.json", eos_token_id=[3, 5], temperature=0.1)
    assert load_policy(str(folder)).eos_ids == (2, 3, 5, 7)
    change_json(folder / "config.json", eos_token_id=None)
    assert load_policy(str(folder)).eos_ids == (2, 3, 5)


def test_what_is_saved_comes_back(toy, folder, tmp_path):
    change_json(folder / "generation_config.json", eos_token_id=[3, 5])
    policy = load_policy(str(folder))
    save_policy(policy, tmp_path / "a" / "b", {"beta": 0.1, "command": "train"})
    saved = load_policy(str(tmp_path / "a" / "b"))
    assert_same_params(saved, policy)
    assert (saved.config, saved.eos_ids, saved.beta) == (policy.config, (2, 3, 5), 0.1)
    assert saved.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert saved.tokenizer("Once upon a time") == policy.tokenizer("Once upon a time")
    assert policy.beta is None


# Failing writes


@contextmanager
def file_size_limit(size: int):
    """No file may grow beyond `size` bytes: what a full disk does to a large file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failing_save_leaves_no_half_of_a_file(toy, tmp_path):
    policy = load_policy(str(toy))
    with file_size_limit(300_000):
        found = refusal(save_policy, policy, tmp_path / "new")
    assert (
        found.startswith(f"{tmp_path / 'new' / WEIGHTS}: cannot be written: ") and "File too large" in found
    )
    assert not list((tmp_path / "new").glob("*safetensors*")) and not list(
        (tmp_path / "new").glob("*.partial")
    )

    save_policy(policy, tmp_path / "old")
    names = sorted(path.name for path in (tmp_path / "old").iterdir())
    doubled = with_params(policy, jax.tree.map(lambda a: 2 * a, policy.params))
    with file_size_limit(300_000):
        refusal(save_policy, doubled, tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == names
    assert_same_params(load_policy(str(tmp_path / "old")), policy)


def test_a_folder_that_cannot_be_made(toy, tmp_path):
    (tmp_path / "file").write_text("")
    policy = load_policy(str(toy))
    assert refusal(save_policy, policy, tmp_path / "file" / "model") == (
        f"{tmp_path / 'file' / 'model'}: cannot be written: Not a directory"
    )
    assert refusal(save_policy, policy, tmp_path / "file").startswith(
        f"{tmp_path / 'file'}: cannot be written: "
    )


# Fingerprints


def test_fingerprints_tell_weights_and_settings_apart(toy, folder, tmp_path):
    whole = load_policy(str(toy)).fingerprint
    assert load_policy(str(folder)).fingerprint == whole
    norm = load_file(folder / WEIGHTS)[NORM]
    change_tensors(folder, **{NORM.replace(".", "__"): norm.at[5].add(1e-6)})
    changed = load_policy(str(folder)).fingerprint
    shutil.copyfile(toy / WEIGHTS, folder / WEIGHTS)
    change_json(folder / "config.json", rms_norm_eps=2e-5)
    assert len({whole, changed, load_policy(str(folder)).fingerprint}) == 3
