"""Meshes: where parameters and batches lie, and that models compute there what they compute on one device.

What needs several devices runs as `python -m tests.devices.test_sharding FOLDER` with eight devices made of this
machine's processor; each check is a function `check_…` here.
"""

import json
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dera_jax import models
from dera_jax.data.batches import Batch
from dera_jax.devices import placement
from dera_jax.devices.mesh import parse_mesh
from dera_jax.models.trees import flatten
from dera_jax.policies import families, weights
from dera_jax.scoring.logprobs import completion_logits
from tests.support.processes import ROOT, environment
from tests.support.tiny_models import (
    OPTIMIZER,
    SMALL,
    assert_close,
    configs,
    gradient,
    make_step,
    random_batch,
    random_params,
)

LARGE = 64 * 96 // 4
"""Elements of the smallest matrices that have to be split, in models of width 64 and 32."""
MESHES = ("data:2,model:4", "data:8", "model:8")


def held(tree, device):
    """Returns the bytes of `tree` on one device."""
    shards = (shard for a in jax.tree.leaves(tree) for shard in a.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def expected_bytes(tree, model):
    """Returns what one of `model` devices has to hold, by the names of modules and dimensions alone."""
    rows = {"embed", "positions", "out", "down"}
    columns = {"query", "key", "value", "gate", "up", "linear", "head", "dense"}
    total = 0
    for path, a in flatten(tree).items():
        *_, module, name = ["", *path.split(".")]
        split = {"lora_a": 0, "lora_b": 1}.get(name, 0 if module in rows else 1)
        kind = rows if split == 0 else columns
        whole = (
            a.ndim < 2 or a.shape[split] % model or (module not in kind and path.count("bias.embedding") == 0)
        )
        total += a.nbytes if whole else a.nbytes // model
    return total


# What runs on eight devices.


def check_every_matrix_is_split():
    mesh = parse_mesh("data:2,model:4")
    for name, config in configs().items():
        shapes = flatten(models.param_shapes(config))
        placed = flatten(placement.param_shardings(config, mesh))
        assert placed.keys() == shapes.keys()
        for path, shape in shapes.items():
            sizes = shape.shape
            assert isinstance(placed[path], NamedSharding) and len(placed[path].spec) == len(sizes), path
            if len(sizes) == 2 and np.prod(sizes) >= LARGE and any(size % 4 == 0 for size in sizes):
                parts = np.prod(sizes) / np.prod(placed[path].shard_shape(sizes))
                assert parts == 4, f"{name}: {path} {sizes} is {placed[path].spec}"
            if len(sizes) == 1:
                assert placed[path].is_fully_replicated


def check_what_does_not_divide_is_whole():
    mesh = parse_mesh("data:1,model:8")
    config = replace(configs()["llama"], vocab_size=511, mlp_width=100)
    placed = flatten(placement.param_shardings(config, mesh))
    for path in ("embed.embedding", "head.kernel", "blocks.0.feed_forward.down.kernel"):
        assert placed[path].is_fully_replicated, path
    assert placed["blocks.0.attention.query.kernel"].spec == P(None, "model")
    assert placed["blocks.0.attention.out.kernel"].spec == P("model", None)


COMPUTED = ("llama, biases", "gpt2", "t5 v1.1", "llama, lora", "reward of t5's decoder")


def check_logits_and_gradients_agree_with_one_device():
    batch, beta = random_batch(), np.float32(0.7)
    for name in COMPUTED:
        config = configs()[name]
        params, compute = random_params(config), jax.jit(gradient(config))
        (value, logits), gradients = compute(params, batch, beta)
        for text in MESHES if name == "llama, biases" else MESHES[:1]:
            mesh = parse_mesh(text)
            placed = placement.shard_flat(params, mesh)
            (ours, our_logits), ours_gradients = compute(placed, *placement.shard_batch((batch, beta), mesh))
            assert_close({"loss": ours, "logits": our_logits}, {"loss": value, "logits": logits}, 2e-5)
            assert_close(ours_gradients, gradients, 1e-4)


def check_memory_is_divided():
    for name in ("llama", "gpt2", "gpt_neox", "mt5", "llama, lora", "reward of t5's decoder"):
        config = configs()[name if name != "mt5" else "t5 mt5"]
        whole = random_params(config)
        for text in MESHES:
            mesh = parse_mesh(text)
            one, model = expected_bytes(whole, mesh.shape["model"]), mesh.shape["model"]
            assert one <= sum(a.nbytes for a in jax.tree.leaves(whole)) / model**0.7
            params = placement.shard_flat(whole, mesh)
            assert all(held(params, device) == one for device in jax.devices()), (name, text)


def check_the_state_of_training_lies_like_the_parameters_and_stays():
    mesh, whole = parse_mesh("data:2,model:4"), random_params(SMALL)
    params, one = placement.shard_flat(whole, mesh), expected_bytes(whole, 4)
    eager = OPTIMIZER.init(params)
    state = jax.jit(OPTIMIZER.init, out_shardings=placement.like_params(OPTIMIZER, params, mesh))(params)
    kept = jax.tree.map(lambda a: a.sharding, (params, state))
    step = jax.jit(make_step(SMALL), donate_argnums=(0, 1), out_shardings=(*kept, None, None))
    batch = placement.shard_batch((random_batch(), np.float32(1)), mesh)
    for _ in range(3):
        assert all(held(params, device) == one for device in jax.devices())
        counts = sum(a.nbytes for a in jax.tree.leaves(state) if a.ndim == 0)
        assert all(held(state, device) == 2 * one + counts for device in jax.devices())
        for moments in (state[1][0].mu, state[1][0].nu, eager[1][0].mu):
            assert all(jax.tree.leaves(jax.tree.map(lambda m, p: m.sharding == p.sharding, moments, params)))
        params, state, *_ = step(params, state, *batch)
    assert step._cache_size() == 1


def check_a_part_of_the_parameters_can_be_trained():
    """The optimizer's state of the low-rank parameters alone."""
    config, mesh = configs()["llama, lora"], parse_mesh("data:2,model:4")
    params = placement.shard_flat(flatten(random_params(config)), mesh)
    trained = {path: a for path, a in params.items() if path.endswith(("lora_a", "lora_b"))}
    state = placement.like_params(OPTIMIZER, trained, mesh)
    mu = next(s for s in state[1] if hasattr(s, "mu")).mu
    assert mu["blocks.0.attention.out.lora_a"].spec == P("model", None)
    assert mu["blocks.0.attention.out.lora_b"].is_fully_replicated
    assert mu["blocks.1.feed_forward.up.lora_b"].spec == P(None, "model")
    assert mu.keys() == trained.keys()


def check_quantized_models_lie_like_others():
    mesh = parse_mesh("data:2,model:4")
    for name in ("llama, int8, lora", "llama, nf4"):
        config = configs()[name]
        params = random_params(config)
        placed = placement.shard_flat(params, mesh)
        assert held(placed, jax.devices()[3]) < 0.4 * sum(a.nbytes for a in jax.tree.leaves(params))
        up, down = (placed["blocks"][0]["feed_forward"][each] for each in ("up", "down"))
        assert up["kernel"].sharding.spec == up["kernel_scale"].sharding.spec == P(None, "model")
        assert down["kernel"].sharding.spec == P("model", None)
        batch = random_batch()
        forward = jax.jit(lambda p, b, c=config: completion_logits(c, p, b))
        expected = forward(params, batch)
        logits = forward(placed, placement.shard_batch(batch, mesh))
        assert_close({"logits": logits}, {"logits": expected}, 2e-5)


def check_files_go_straight_to_their_devices(folder):
    folder = Path(folder)
    raw, mesh = families.read_config(folder), parse_mesh("data:2,model:4")
    config = families.model_config(folder, raw)
    found = weights.find_params(folder, raw["model_type"], config)
    whole = flatten(weights.read_params(found, "float32"))
    place, made, reader = placement.place(mesh), {}, weights._Reader

    class Counted(reader):
        def __call__(self, tensor, *rest):
            value = super().__call__(tensor, *rest)
            made.setdefault(tensor.name, []).append(value.shape)
            return value

    weights._Reader = Counted
    params = flatten(weights.read_params(found, "float32", place))
    weights._Reader = reader
    for path, value in params.items():
        np.testing.assert_array_equal(value, whole[path])
        shape = value.sharding.shard_shape(value.shape)
        assert set(made[found[path][0].name]) == {shape}, path
        assert {shard.data.shape for shard in value.addressable_shards} == {shape}
    for device in jax.devices():
        assert held(params, device) == expected_bytes(whole, 4)
    placed = flatten(placement.param_shardings(config, mesh))
    assert all(params[path].sharding == placed[path] for path in params)


def check_texts_of_meshes():
    devices = jax.devices()
    for text, sizes in {
        None: (8, 1), "data:2,model:4": (2, 4), "model:4, data:2": (2, 4), "model:8": (1, 8), "data:8": (8, 1)
    }.items():  # fmt: skip
        mesh = parse_mesh(text)
        assert mesh.axis_names == ("data", "model") and mesh.devices.shape == sizes
        assert set(mesh.devices.flat) == set(devices)
    wrong = [
        "", "8", "data", "data:", "data:2", "data:0,model:8", "data:-1", "data:2,data:4", "rows:8", "data:2;model:4",
        "data:2,model:4,", "data:²,model:4", "data:2,model:5", "data:16", "data:2.0,model:4",
    ]  # fmt: skip
    for text in wrong:
        with pytest.raises(ValueError) as raised:
            parse_mesh(text)
        expected = f"mesh: expected data:N,model:M with N × M = 8 (8 cpu devices), got {text!r}"
        assert str(raised.value) == expected


def check_batches_are_dealt_by_rows():
    mesh, batch = parse_mesh("data:4,model:2"), random_batch()
    placed, beta = placement.shard_batch((batch, np.float32(0.5)), mesh)
    assert isinstance(placed, Batch) and beta.sharding.is_fully_replicated and beta == 0.5
    for ours, host in zip(*map(jax.tree.leaves, (placed, batch)), strict=True):
        np.testing.assert_array_equal(ours, host)
        assert ours.sharding.spec == P("data") and ours.addressable_shards[0].data.shape[0] == 2
    parts = placement.shard_batch({"tokens": np.zeros((3, 8, 5)), "betas": np.ones(3)}, mesh, axis=1)
    assert parts["tokens"].addressable_shards[0].data.shape == (3, 2, 5)
    assert parts["betas"].sharding.is_fully_replicated
    for ours, host in zip(*map(jax.tree.leaves, (placement.shard_rows(batch, mesh), batch)), strict=True):
        np.testing.assert_array_equal(ours, host)
    np.testing.assert_array_equal(placement.local_rows(mesh, 8), np.arange(8))
    told = r"^batch: expected a multiple of 4 rows \(mesh data:4,model:2\), found 6$"
    with pytest.raises(ValueError, match=told):
        placement.shard_batch(random_batch(rows=6), mesh)
    with pytest.raises(ValueError, match=told):
        placement.local_rows(mesh, 6)


def test_one_device_is_a_mesh_of_one():
    mesh, params, batch = parse_mesh(), random_params(SMALL), random_batch()
    assert mesh.shape == {"data": jax.device_count(), "model": 1}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
    placed = placement.shard_flat(params, mesh)
    compute = jax.jit(gradient(SMALL))
    ours = compute(placed, placement.shard_batch(batch, mesh), 1.0)
    jax.tree.map(np.testing.assert_array_equal, ours, compute(params, batch, 1.0))
    np.testing.assert_array_equal(placement.local_rows(mesh, 8), np.arange(8))
    places = placement.like_params(OPTIMIZER, placed, mesh)
    assert jax.tree.structure(places) == jax.tree.structure(OPTIMIZER.init(params))
    path = "blocks.0.attention.out.kernel"
    assert placement.place(mesh)(path, (32, 32)) == flatten(placed)[path].sharding


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}


@pytest.fixture(scope="module")
def outcomes(toy):
    """Each check's traceback, or nothing."""
    command = [sys.executable, "-m", "tests.devices.test_sharding", str(toy)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(8), cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda name: name.removeprefix("check_"))
def test_on_eight_devices(check, outcomes):
    assert not outcomes[check], outcomes[check]


def run_checks(folder):
    """Prints what every check ended with."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(folder) if "folder" in check.__code__.co_varnames[: check.__code__.co_argcount] else check()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    run_checks(sys.argv[1])
