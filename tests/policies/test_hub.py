"""Models by their names on the hub: its cache, revisions, adapters, what cannot be had."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import save_file

from dera_jax import load_policies, load_policy
from dera_jax.policies import hub
from tests.support.broken_models import refusal
from tests.support.json_files import change_json


@pytest.fixture
def cache(tmp_path, monkeypatch, folder):
    """A hub cache with two revisions of org/name, and no way to the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    for name, commit, epsilon in (("main", "a" * 40, 1e-5), ("v2", "b" * 40, 2e-5)):
        (repo / "refs" / name).write_text(commit)
        shutil.copytree(folder, repo / "snapshots" / commit)
        change_json(repo / "snapshots" / commit / "config.json", rms_norm_eps=epsilon)
    return repo


def test_models_of_the_hub_come_from_its_cache(cache):
    policy = load_policy("org/name")
    assert (policy.name, policy.folder) == ("org/name", cache / "snapshots" / ("a" * 40))
    assert policy.config.norm_epsilon == 1e-5
    assert load_policy("org/name@v2").config.norm_epsilon == 2e-5
    assert load_policy(f"org/name@{'b' * 40}").config.norm_epsilon == 2e-5


def test_a_folder_of_the_name_wins(cache, folder, tmp_path):
    change_json(folder / "config.json", rms_norm_eps=3e-5)
    shutil.copytree(folder, tmp_path / "org" / "name")
    assert load_policy("org/name").config.norm_epsilon == 3e-5
    shutil.copytree(cache / "snapshots" / ("b" * 40), tmp_path / "org" / "name@v3")
    assert load_policy("org/name@v3").config.norm_epsilon == 2e-5


@pytest.mark.parametrize("model", ["org/other", "org/name@v3"])
def test_what_is_not_in_the_cache(cache, model):
    assert refusal(load_policy, model) == (
        f"{model}: no such folder here, not in the hub's cache, and HF_HUB_OFFLINE is set"
    )


@pytest.mark.parametrize("model", ["name", "a/b/c", "org/na me", "org/-name", "~/model", "./org"])
def test_what_is_no_id(cache, model):
    assert refusal(load_policy, model) == f"{model}: no such folder (and not a hub id of the form org/name)"


def test_only_weights_settings_and_tokenizers_are_downloaded():
    wanted = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    others = [
        "README.md",
        "consolidated.safetensors",
        "model.gguf",
        "modeling_mine.py",
        "onnx/config.json",
        "original/consolidated.00.pth",
        "pytorch_model.bin",
    ]
    kept = filter_repo_objects(wanted + others, allow_patterns=hub.FILES, ignore_patterns=hub.DOUBLES)
    assert list(kept) == wanted


@pytest.fixture
def lora(cache):
    """An adapter of org/name in the cache, with two revisions of different strength."""
    repo = cache.parent / "models--org--lora"
    (repo / "refs").mkdir(parents=True)
    for name, commit, alpha in (("main", "c" * 40, 8), ("weak", "d" * 40, 2)):
        (repo / "refs" / name).write_text(commit)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "base_model_name_or_path": "org/name"}
        (snapshot / "adapter_config.json").write_text(json.dumps(settings))
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        shapes = {"A": (2, 80), "B": (80, 2)}
        pair = {name.format(x): np.full(shape, 0.1, np.float32) for x, shape in shapes.items()}
        save_file(pair, snapshot / "adapter_model.safetensors")
    return repo


def test_adapters_of_the_hub(lora):
    policy = load_policy("org/name@v2+org/lora")
    (adapter,) = policy.config.adapters
    assert (adapter.path, adapter.rank, adapter.scale) == ("blocks.0.attention.query", 2, 4.0)
    assert policy.config.norm_epsilon == 2e-5
    assert load_policy("org/name+org/lora@weak").config.adapters[0].scale == 1.0
    reference, aligned = load_policies("org/name", "org/name+org/lora")
    assert reference.params["norm"]["scale"] is aligned.params["norm"]["scale"]
    assert reference.fingerprint != aligned.fingerprint
    shutil.copytree(lora.parent / "models--org--name", lora.parent / "models--org--another")
    assert "was trained on org/name, here it stands on org/another" in refusal(
        load_policy, "org/another+org/lora"
    )
    assert refusal(load_policy, "org/name+org/gone").startswith("org/gone: no such folder here, not in")
