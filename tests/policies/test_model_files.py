"""Files of model folders from anybody: whatever a JSON file says, it is read or refused in one line."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policy
from dera_jax.policies import families, hub
from dera_jax.policies.policy import TOY
from dera_jax.policies.reward_models import load_reward_model

DEEP = "[" * 100_000
SIZES = [None, True, 0, -1, 1.5, 10**30, "4", [1], {}]
NUMBERS = [True, "1", [1], {}]
TEXTS = [5, True, ["a"], {}]
FLAGS = ["yes", 0.5, [], {}]
WORDS = ["a", 5, [5], {}, [None]]
IDS = ["1", 1.5, 10**30, {"a": 1}, [[1]], ["1"], True, -2]
OBJECTS = ["a", 5, [1], True]

CONFIG = {
    "model_type": TEXTS,
    "architectures": WORDS,
    "vocab_size": SIZES,
    "hidden_size": SIZES,
    "intermediate_size": SIZES,
    "num_hidden_layers": [*SIZES, 5, 10**6, 10**12],
    "num_attention_heads": [*SIZES, 7, 10**6],
    "num_key_value_heads": [*SIZES[1:], 3],
    "head_dim": [*SIZES[1:], 7],
    "max_position_embeddings": SIZES,
    "rms_norm_eps": [*NUMBERS, -1, 2],
    "hidden_act": [*TEXTS, "eval", "\x1b[2J", "\ud800", "a" * 5000],
    "attention_bias": FLAGS,
    "mlp_bias": FLAGS,
    "tie_word_embeddings": FLAGS,
    "eos_token_id": IDS,
    "dtype": [5, ["float32"], {}, "\x1b[2J"],
    "quantization_config": [*OBJECTS, {}, {"quant_method": "gptq"}, {"quant_method": ["\x1b"]}],
    "num_labels": ["2", 10**12, -1, [2]],
    "id2label": [*OBJECTS, {"x": "a"}],
    "rope_parameters": [
        *OBJECTS, {"rope_type": "x"}, {"rope_type": ["x"]}, {"rope_theta": "x"}, {"rope_theta": 0},
        {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0},
        {"rope_theta": 1e4, "rope_type": "linear", "factor": 0},
        {"rope_theta": 1.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
         "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    ],
    "rope_scaling": [*OBJECTS, {"type": 5}, {"type": "linear", "factor": "2"}],
}  # fmt: skip
GENERATION = {"eos_token_id": IDS}
TOKENIZER = {
    "model_max_length": ["512", [512], {}, True],
    "chat_template": [5, True, [5], ["a"], [{"name": "a"}], [{"name": 5, "template": "a"}], {"default": 5}],
    "model_input_names": ["input_ids", [], [5], None, {}],
    "eos_token": [5, ["</s>"], {}, {"content": 5}, True, "\ud800"],
    "pad_token": [5, ["</s>"], {}, {"content": None}],
    "added_tokens_decoder": [*OBJECTS, {"0": 5}, {"x": {"content": "a"}}, {"0": {"content": 5}}],
    "additional_special_tokens": ["a", 5, [5], [None]],
    "tokenizer_class": [5, ["LlamaTokenizer"], {}],
    "padding_side": [5, "up", ["left"]],
    "extra_ids": ["100", -1, 10**12],
}
TOKENS = {"eos_token": [5, {}, [5], {"content": 5}], "additional_special_tokens": [5, [5], [{}]]}
ADAPTER = {
    "peft_type": [None, *TEXTS, "IA3", "\x1b[2J"],
    "r": SIZES,
    "lora_alpha": [None, *NUMBERS, 10**400],
    "alpha_pattern": [
        *OBJECTS, {"q_proj": "4"}, {"q_proj": None}, {"q_proj": [4]}, {"q_proj(": 4}, {"*": 4}, {"[": 4},
        {"(?P<x": 4}, {"\\": 4}, {"(" * 5000 + ")" * 5000: 4},
        {"(?<=a*)b": 4}, {"((a{1000}){1000}){1000000000000}": 4},
    ],
    "rank_pattern": [*OBJECTS, {"q_proj": "4"}, {"q_proj": 0}, {"q_proj": 1.5}],
    "target_modules": [5, True, [5], {}],
    "modules_to_save": ["lm_head", 5, [5], {}],
    "base_model_name_or_path": [["x"], 5, {}, True, "a\0b", "a" * 5000],
    "use_rslora": FLAGS,
    "use_dora": [True, "yes", ["\x1b[2J"]],
    "bias": ["all", ["\x1b[2J"]],
}  # fmt: skip
MANIFEST = {"beta": ["0.1", [0.1], {"a": 0.1}, True, -1]}
INDEX = {
    "weight_map": [
        None, 5, "a", [], ["a"], {}, {"a": 5}, {"a": None}, {"a": ["model.safetensors"]}, {"a": ""}, {"a": "."},
        {"a": ".."}, {"a": "../reference/model.safetensors"}, {"a": "/etc/passwd"}, {"a": "/dev/zero"},
        {"a": "a\0b.safetensors"}, {"a": "\x1b[2J.safetensors"}, {"a": "\ud800.safetensors"},
        {"a": "config.json"}, {"a": "x/../model.safetensors"}, {"a": "a" * 5000 + ".safetensors"},
    ]
}  # fmt: skip
FILES = {
    "config.json": CONFIG,
    "generation_config.json": GENERATION,
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": TOKENS,
    "manifest.json": MANIFEST,
    "model.safetensors.index.json": INDEX,
    "adapter/adapter_config.json": ADAPTER,
}
CASES = [
    (file, field, number)
    for file, fields in FILES.items()
    for field, values in fields.items()
    for number in range(len(values))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The toy reference, in two files with an index, and an adapter of it."""
    folder = shutil.copytree(TOY / "reference", tmp_path_factory.mktemp("models") / "model")
    tensors = load_file(folder / "model.safetensors")
    names = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in {*names.values()}:
        save_file({n: t for n, t in tensors.items() if names[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (adapter := folder / "adapter").mkdir()
    write_adapter(adapter)
    return folder


def write_adapter(adapter: Path, rank=2, **changed):
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": np.ones((rank, 80), np.float32),
        f"{module}.lora_B.weight": np.ones((80, rank), np.float32),
    }
    save_file(
        {n: t for n, t in (tensors | changed).items() if t is not None}, adapter / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def refusal(load, *args) -> str:
    """Returns the one line that a loader says no with."""
    with pytest.raises(ValueError) as caught:
        load(*args)
    line = str(caught.value)
    assert line and line.isprintable() and len(line) < 1500
    return line


def load_with(folder, file):
    return load_policy(f"{folder}+{folder / 'adapter'}" if file.startswith("adapter/") else folder)


@pytest.fixture
def restored(folder):
    """Puts back what a test has changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    yield folder
    for path in folder.rglob("*.*"):
        if path not in before:
            path.unlink()
    for path, data in before.items():
        path.write_bytes(data)


def test_the_folder_itself_is_read(folder):
    assert load_with(folder, "config.json").config.num_layers == 4
    assert len(load_with(folder, "adapter/adapter_config.json").config.adapters) == 1


@pytest.mark.parametrize(("file", "field", "number"), CASES)
def test_odd_values_are_refused_in_one_line(restored, file, field, number):
    path, value = restored / file, FILES[file][field][number]
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | {field: value}))
    line = refusal(load_with, restored, file)
    assert str(path) in line or (file.startswith(("tokenizer", "special")) and f"{restored}: the tok" in line)


@pytest.mark.parametrize(
    "content", [DEEP, '{"a":' * 100_000, "", "{", "5", '"a"', "[1]", '{"a": NaN}', '{"a": 1e999}']
)
@pytest.mark.parametrize("file", [*(f for f in FILES if f != "manifest.json"), "tokenizer.json"])
def test_odd_files_are_refused_in_one_line(restored, file, content):
    (restored / file).write_text(content)
    assert str(restored) in refusal(load_with, restored, file)


@pytest.mark.parametrize("file", [*FILES, "tokenizer.json", "chat_template.jinja", "model-0.safetensors"])
def test_pipes_and_devices_are_not_opened(restored, file, tmp_path):
    (restored / file).unlink(missing_ok=True)
    os.mkfifo(restored / file)
    assert "expected a file, found a pipe or a device" in refusal(load_with, restored, file)
    (restored / file).unlink()
    (restored / file).symlink_to("/dev/zero")
    assert "expected a file, found a pipe or a device" in refusal(load_with, restored, file)
    (restored / file).unlink()


OTHERS = {
    "gpt2": {"n_embd": SIZES, "n_layer": SIZES, "n_head": [*SIZES, 10**6], "n_positions": SIZES, "n_inner": SIZES[1:],
             "layer_norm_epsilon": NUMBERS, "activation_function": TEXTS, "scale_attn_weights": FLAGS},
    "gpt_neox": {"num_attention_heads": SIZES, "use_parallel_residual": FLAGS, "rotary_pct": [*NUMBERS, -1, 2]},
    "gemma2": {"query_pre_attn_scalar": [*NUMBERS, 0, -1], "final_logit_softcapping": NUMBERS, "layer_types": WORDS,
               "sliding_window": ["1", -1, 1.5, 10**30, None]},
    "gemma3_text": {"sliding_window_pattern": [0, -1, "1"], "rope_local_base_freq": NUMBERS},
    "qwen2": {"use_sliding_window": FLAGS, "max_window_layers": ["1", -1]},
    "t5": {"d_model": SIZES, "d_kv": SIZES, "d_ff": SIZES, "num_layers": [*SIZES, 10**12], "num_heads": SIZES,
           "num_decoder_layers": [*SIZES[1:], 10**12], "relative_attention_num_buckets": [*SIZES, 1],
           "feed_forward_proj": [*TEXTS, "x-y-z"], "decoder_start_token_id": ["1", 10**30, [1]]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(k, f, v) for k, fields in OTHERS.items() for f, vs in fields.items() for v in vs],
)
def test_odd_settings_of_other_families(tmp_path, kind, field, value):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, field: value}))
    line = refusal(lambda: families.model_config(tmp_path, families.read_config(tmp_path)))
    assert line.startswith(f"{tmp_path / 'config.json'}: ")


def test_messages_name_field_and_value(restored, hurried):
    def told(file, **changed):
        path = restored / file
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changed))
        line = refusal(load_with, restored, file)
        path.write_text(before)
        return line.removeprefix(f"{path}: ")

    expected = "quantization_config: expected full precision, found weights quantized by bitsandbytes; "
    assert told("config.json", quantization_config={"quant_method": "bitsandbytes"}).startswith(expected)
    assert told("config.json", num_hidden_layers=10**9) == (
        "at num_hidden_layers: expected a whole number <= 1024, found 1000000000"
    )
    assert told("config.json", num_hidden_layers=9) == (
        "num_hidden_layers: expected at most 4, which the safetensors files hold, found 9"
    )
    adapter = "adapter/adapter_config.json"
    assert told(adapter, alpha_pattern={"q_proj(": 4}) == (
        "alpha_pattern: no regular expressions: missing ), unterminated subpattern at position 6"
    )
    assert told(adapter, alpha_pattern={"(([a-z._0-9])+)+!": 4}) == (
        "alpha_pattern: comparing them with names takes more than 5 s of computing"
    )
    outside = {"weight_map": {"a": "../other/model.safetensors"}}
    assert told("model.safetensors.index.json", **outside) == (
        "weight_map: expected names of safetensors files beside it, found '../other/model.safetensors'"
    )


ADAPTERS = {
    "no ranks": ({"rank": 0}, r"expected shape \(1, 80\) .*, found \(0, 80\)"),
    "no tensors": ({"rank": 2, **dict.fromkeys(["A", "B"])}, "expected tensors, found none"),
    "no shape": ({"A": np.array(1, np.float32)}, r"found \(\)"),
    "whole numbers": ({"A": np.ones((2, 80), np.int8)}, "expected one of F32, F16, BF16, found I8"),
    "double": ({"B": np.ones((80, 2))}, "expected one of F32, F16, BF16, found F64"),
    "NaN": ({"B": np.full((80, 2), np.nan, np.float32)}, "holds NaN or infinite values as float32"),
}


@pytest.mark.parametrize(("changed", "message"), ADAPTERS.values(), ids=ADAPTERS)
def test_odd_tensors_of_adapters(restored, changed, message):
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    named = {f"{module}.lora_{k}.weight" if k in "AB" else k: v for k, v in changed.items()}
    write_adapter(restored / "adapter", **named)
    line = refusal(load_with, restored, "adapter/")
    assert line.startswith(str(restored / "adapter")) and re.search(message, line)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.model."])
def test_weights_in_a_wrapper_are_told(tmp_path, prefix):
    folder = shutil.copytree(TOY / "reference", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: value for name, value in tensors.items()}, folder / "model.safetensors")
    line = refusal(load_policy, folder)
    assert re.search(rf"; found {re.escape(prefix)}model\.\S+: the model was saved inside a wrapper", line)


@pytest.mark.parametrize(
    "name",
    ["a\0b", "\x1b[2J/x", "a" * 5000, "/" + "a" * 5000, "a/" + "b" * 5000, "\ud800/x", "a\nb/c", "~", ".", "/dev/zero",
     "toy@\x1b[2J", "+", "a+", "a+b\0", "\0+a", "@", "org/name@" + "x" * 5000, "/proc/self/fd"],
)  # fmt: skip
@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_odd_names_of_models(load, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(refusal(load, name)) < 700


def test_commas_in_the_names_of_folders(tmp_path):
    (tmp_path / "a,b" / "c").mkdir(parents=True)
    whole = f"{tmp_path}/a,b/c"
    for text, names in {
        f"{whole}": [whole],
        f"org/x,{whole}": ["org/x", whole],
        f"{whole}+{whole},{whole}@main,": [f"{whole}+{whole}", f"{whole}@main", ""],
        "a,b": ["a", "b"],
    }.items():
        assert hub.split_models(text) == names
