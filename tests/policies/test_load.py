"""Loading: settings, pairs, tokenizers and EOS, broken ones refused in one clear line."""

import json
import shutil

import pytest
from safetensors.flax import load_file

from dera_jax import load_policies, load_policy
from dera_jax.policies.load import fresh_policy
from dera_jax.policies.tokenizers import load_tokenizer
from tests.support.broken_models import NORM, WEIGHTS, change_tensors, refusal
from tests.support.json_files import change_json

# config.json

CONFIGS = {
    "another architecture": ({"model_type": "opt"}, "model_type 'opt' is not supported; supported: llama"),
    "an encoder": (
        {"model_type": "bert"},
        "model_type 'bert' is not supported, an encoder, which draws no text: expected a decoder, or a T5; supported:",
    ),
    "a language model within": (
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
        "model_type 'gemma3' is not supported, but the language model within, a gemma3_text, is if it is saved",
    ),
    "another within": (
        {"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text"}},
        "model_type 'qwen2_vl' is not supported, nor is the language model within, a qwen2_vl_text; supported: llama",
    ),
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
def test_a_manifest_of_something_else(folder, content, terminal):
    """Other tools write files of that name; one that is no object is none of ours."""
    (folder / "manifest.json").write_bytes(content)
    assert load_policy(str(folder)).beta is None
    (line,) = terminal.readouterr().err.splitlines()
    assert line.startswith(f"passed over, so β is not known from it: {folder / 'manifest.json'}: ")


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
        == f"{folder}: expected tokenizer files (tokenizer.json), found none; "
        "copy them from the model that this one was trained from"
    )


def test_eos_is_what_any_of_three_files_says(folder):
    assert load_policy(str(folder)).eos_ids == (2,)
    change_json(folder / "config.json", eos_token_id=7)
    change_json(folder / "generation_config.json", eos_token_id=[3, 5], temperature=0.1)
    assert load_policy(str(folder)).eos_ids == (2, 3, 5, 7)
    change_json(folder / "config.json", eos_token_id=None)
    assert load_policy(str(folder)).eos_ids == (2, 3, 5)


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
