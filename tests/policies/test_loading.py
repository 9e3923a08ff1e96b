"""Loading at scale: shards, memory, devices, progress."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policy, save_policy
from dera_jax.models.trees import flatten
from dera_jax.policies import tensors, weights
from tests.support.processes import ROOT, environment
from tests.support.shapes import SHAPES
from tests.support.torch_models import random_model, save


def shard(folder, out, count):
    """Copies a model's folder, its weights dealt out to `count` files with an index."""
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    index = {name: names[number % count] for number, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({n: t for n, t in tensors.items() if index[n] == file}, out / file, {"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return out


def test_three_shards_give_the_same_rows(toy, tmp_path):
    from dera_jax import sweep

    sharded = shard(toy, tmp_path / "sharded", 3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    rows = []
    for folder in (toy, sharded):
        policy = load_policy(folder)
        found = sweep(
            (policy, policy), ["Once upon a time", "Lily"], [0, 0.5], max_new_tokens=24, num_samples=2
        )
        rows.append(sorted(found, key=lambda row: (row["prompt_id"], row["sample"], row["lambda"])))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_chunks_make_the_whole(name, tmp_path, toy, monkeypatch):
    folder = save(random_model(SHAPES[name]), tmp_path, toy)
    whole = flatten(load_policy(folder).params)
    monkeypatch.setattr(weights, "CHUNK", 1000)
    for path, value in flatten(load_policy(folder).params).items():
        np.testing.assert_array_equal(value, whole[path])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_every_tensor_is_read_once_and_every_file_hashed_once(name, tmp_path, toy, monkeypatch):
    folder = save(random_model(SHAPES[name]), tmp_path, toy)
    read, hashed = Counter(), Counter()

    def counted(self, index=(), original=tensors.Tensor.read):
        value = original(self, index)
        read[self.name] += value.size
        return value

    def hashing(file, original=tensors.sha256):
        hashed[file.name] += 1
        return original(file)

    monkeypatch.setattr(tensors.Tensor, "read", counted)
    monkeypatch.setattr(tensors, "sha256", hashing)
    load_policy(folder)
    there = tensors.list_tensors(folder)
    assert read == {tensor: math.prod(there[tensor].shape) for tensor in read}
    assert len(read) > 10 and hashed == {"model.safetensors": 1}


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_tiles_make_the_whole(rows):
    values = np.arange(rows * 257, dtype="float32").reshape(rows, 257)
    out = np.zeros((257, rows), "float32")
    weights._copy(out.T, values, transposed=True)
    np.testing.assert_array_equal(out, values.T)


LARGEST = {"float32": np.finfo("float32").max, "float16": np.finfo("float16").max, "bfloat16": 3.3895314e38}


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("asked", ["auto", "float32"])
def test_values_that_are_not_finite_are_refused_in_any_type(dtype, asked, tmp_path, toy):
    """Those next to them, the largest and the smallest there are, are not."""
    folder = shutil.copytree(toy, tmp_path / "model", copy_function=shutil.copy)
    # As they lie in the file, as they are turned, and of one dimension.
    for part in ("embed_tokens", "up_proj", "norm"):
        kept = load_file(toy / "model.safetensors")
        name = next(each for each in kept if part in each)
        there = {each: tensor.astype(dtype) for each, tensor in kept.items()}
        for number in (LARGEST[dtype], -LARGEST[dtype], 1e-40, -0.0):
            there[name].flat[-1] = number
            assert np.isfinite(there[name].astype("float64")).all()
            save_file(there, folder / "model.safetensors", {"format": "pt"})
            load_policy(folder, asked)
        for number in (np.inf, -np.inf, np.nan, -np.nan):
            there[name].flat[-1] = number
            save_file(there, folder / "model.safetensors", {"format": "pt"})
            with pytest.raises(ValueError, match=f"{name} holds NaN or infinite values"):
                load_policy(folder, asked)


def test_progress_counts_every_byte(toy):
    started, seen = [], []

    def start(name, size):
        started.append((name, size))
        return seen.append

    policy = load_policy(toy, started=start)
    size = sum(a.nbytes for a in jax.tree.leaves(policy.params))
    assert started == [(str(toy), size)] and sum(seen) == size


SHARDED = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from pathlib import Path
from dera_jax.policies import families, weights, tensors
from dera_jax.models.trees import flatten

mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
folder = Path(sys.argv[1])
raw = families.read_config(folder)
found = weights.find_params(folder, raw["model_type"], families.model_config(folder, raw))

def place(path, shape):
    split = [None] * len(shape)
    if shape[-1] % 8 == 0:
        split[-1] = "model"
    return NamedSharding(mesh, P(*split))

read = []
original = tensors.Tensor.read
def counted(self, index=()):
    value = original(self, index)
    read.append(value.nbytes)
    return value
tensors.Tensor.read = counted
params = flatten(weights.read_params(found, "float32", place))
whole = flatten(weights.read_params(found, "float32"))
for path, value in params.items():
    assert value.sharding == place(path, value.shape), path
    np.testing.assert_array_equal(value, whole[path])
assert len(params["blocks.0.feed_forward.up.kernel"].addressable_shards) == 8
print(sum(read) / 2 / sum(a.nbytes for a in whole.values()))
"""


def test_straight_onto_a_mesh(tmp_path, toy):
    """Each device's part is read by itself, and nothing twice."""
    folder = save(random_model(SHAPES["llama"]), tmp_path, toy)
    ended = subprocess.run(
        [sys.executable, "-c", SHARDED, folder], capture_output=True, text=True, env=environment(8), cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) == pytest.approx(1, abs=0.01)


MEMORY = """
import sys, resource, threading, time
import jax, numpy as np
from dera_jax import load_policy
from dera_jax.policies.policy import held_bytes
from safetensors.numpy import load_file

load_policy(sys.argv[2])  # what is imported and compiled once

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

before, peak, done = resident(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
policy = load_policy(sys.argv[1], sys.argv[3])
done.set()
watcher.join()
print(peak[0] - before, held_bytes([policy]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_memory_beyond_the_arrays_is_less_than_a_shard(dtype, tmp_path, toy):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=8
    )
    whole = save(LlamaForCausalLM(config), tmp_path / "whole", toy)
    folder = shard(whole, tmp_path / "sharded", 4)
    largest = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, toy, dtype], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    peak, arrays = map(int, ended.stdout.split())
    print(f"{dtype}: arrays {arrays / 2**20:.0f} MiB, beyond them {(peak - arrays) / 2**20:.0f} MiB")
    print(f"largest shard {largest / 2**20:.0f} MiB")
    assert peak - arrays <= 1.2 * largest


def test_what_we_save_in_shards_transformers_loads(tmp_path, toy, monkeypatch):
    from transformers import AutoModelForCausalLM

    policy = load_policy(toy)
    monkeypatch.setattr(tensors, "SHARD_SIZE", 300_000)
    save_policy(policy, tmp_path / "saved")
    files = sorted(file.name for file in (tmp_path / "saved").glob("*.safetensors"))
    assert len(files) >= 3 and files[0].startswith("model-00001-of-")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    expected = AutoModelForCausalLM.from_pretrained(toy).state_dict()
    assert all((theirs[name] == value).all() for name, value in expected.items())
    # Saved once more in one file, the shards and their index are gone.
    monkeypatch.setattr(tensors, "SHARD_SIZE", 10**9)
    save_policy(policy, tmp_path / "saved")
    assert sorted(file.name for file in (tmp_path / "saved").glob("model*")) == ["model.safetensors"]


def test_loading_is_told_and_what_is_shared_counts_once(toy, capsys):
    from dera_jax.commands.sweep import main

    assert main([f"--reference={toy}", f"--aligned={toy}", "--prompts=toy", "--dry-run", "--rows=2"]) == 0
    told = capsys.readouterr()
    assert re.search(
        r"^loaded 2 models \(float32, what they share held once\): 1\.2 MiB in [\d.]+ s$", told.err, re.M
    )
    assert "weights 1.2 MiB" in told.out
