"""Meshes: where parameters and batches lie, and that models compute there what they compute on one device.

What needs several devices or processes runs as `python -m tests.test_sharding NAME ARGUMENTS` with eight
devices made of this machine's processor; each check is a function `check_…` here.
"""

import json
import os
import socket
import subprocess
import sys
import traceback
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dera_jax import models, sharding
from dera_jax.batches import Batch, make_batch
from dera_jax.loading import families, weights
from dera_jax.models.decoder import DecoderConfig
from dera_jax.models.linear import Adapter
from dera_jax.models.reward import RewardConfig
from dera_jax.score import completion_logits, completion_logprobs
from dera_jax.trees import flatten

ROOT = Path(__file__).parents[1]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-2)))
LARGE = 64 * 96 // 4
"""Elements of the smallest matrices that have to be split, in models of width 64 and 32."""
MESHES = ("data:2,model:4", "data:8", "model:8")

SMALL = DecoderConfig(
    vocab_size=512, width=32, mlp_width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64
)  # fmt: skip


@cache
def configs():
    """Returns the tiny configuration of every family in its variants, and what is built upon them."""
    from transformers import AutoConfig

    from tests.test_models import BASE, SHAPES
    from tests.test_t5 import BASE as T5_BASE
    from tests.test_t5 import SHAPES as T5_SHAPES

    found = {}
    for name, settings in SHAPES.items():
        settings = settings if settings.get("model_type") == "gpt2" else BASE | settings
        found[name] = {"model_type": "llama"} | settings
    found |= {f"t5 {name}": T5_BASE | settings for name, settings in T5_SHAPES.items()}
    for name, settings in found.items():
        kind, tied = settings.pop("model_type"), settings.pop("tied", True)
        raw = AutoConfig.for_model(kind, **settings).to_dict()
        found[name] = families.model_config(Path("nowhere"), raw)
        if name.startswith("t5"):
            found[name] = replace(found[name], tie_embeddings=tied)
    llama, t5 = found["llama, biases"], found["t5 v1.1, tied"]
    kernels = [path for path in flatten(models.param_shapes(llama)) if path.endswith("kernel")]
    adapters = tuple(Adapter(path.removesuffix(".kernel"), 4, 2.0) for path in kernels if "head" not in path)
    found["llama, lora"] = replace(llama, adapters=adapters)
    found["llama, int8, lora"] = replace(llama, quantization="int8", adapters=adapters)
    found["llama, nf4"] = replace(llama, quantization="nf4", width=128, mlp_width=256, num_layers=1)
    found["reward of llama"] = RewardConfig(trunk=replace(found["llama, tied"]))
    for head in ("encoder", "decoder"):
        found[f"reward of t5's {head}"] = RewardConfig(trunk=t5, head=head)
    return found


def random_params(config, seed=0):
    """Returns parameters none of which has its initial value."""
    numbers = np.random.default_rng(seed)

    def draw(shape):
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(numbers.integers(0, 15, shape.shape), shape.dtype)
        noise = numbers.standard_normal(shape.shape)
        value = noise / shape.shape[-1] ** 0.5 if len(shape.shape) > 1 else 1 + 0.3 * noise
        return jnp.asarray(value, shape.dtype)

    return jax.tree.map(draw, models.param_shapes(config))


def random_batch(rows=8, seed=1):
    numbers = np.random.default_rng(seed)
    prompts, completions = (
        [numbers.integers(3, 500, size=n).tolist() for n in numbers.integers(1, longest, size=rows)]
        for longest in (30, 14)
    )
    return make_batch(prompts, completions)


def loss(config, params, batch, beta):
    """Returns a loss that reads every completion token, or every row's reward, and what the model says."""
    if isinstance(config, RewardConfig):
        reward = models.bind(config, params)(batch.tokens, batch.mask)
        return jnp.mean(jax.nn.softplus(-beta * reward)), reward
    logprobs = completion_logprobs(config, params, batch)
    return jnp.mean(jax.nn.softplus(-beta * logprobs.sum(axis=1) / 10)), completion_logits(
        config, params, batch
    )


def gradient(config):
    """Returns the function (parameters, batch, beta) -> ((loss, logits), gradients)."""
    return jax.value_and_grad(partial(loss, config), has_aux=True)


def make_step(config):
    """Returns the function (parameters, optimizer state, batch, beta) -> the same after a step, loss, gradients."""

    def step(params, state, batch, beta):
        (value, _), gradients = gradient(config)(params, batch, beta)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, gradients

    return step


def assert_close(ours, expected, bound):
    """Compares two trees, each array's differences with its largest value."""
    for (path, one), other in zip(flatten(ours).items(), flatten(expected).values(), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert abs(one - other).max() <= bound * max(abs(other).max(), 1e-3), path


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
    mesh = sharding.parse_mesh("data:2,model:4")
    for name, config in configs().items():
        shapes = flatten(models.param_shapes(config))
        placed = flatten(sharding.param_shardings(config, mesh))
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
    mesh = sharding.parse_mesh("data:1,model:8")
    config = replace(configs()["llama"], vocab_size=511, mlp_width=100)
    placed = flatten(sharding.param_shardings(config, mesh))
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
            mesh = sharding.parse_mesh(text)
            placed = sharding.shard_flat(params, mesh)
            (ours, our_logits), ours_gradients = compute(placed, *sharding.shard_batch((batch, beta), mesh))
            assert_close({"loss": ours, "logits": our_logits}, {"loss": value, "logits": logits}, 2e-5)
            assert_close(ours_gradients, gradients, 1e-4)


def check_memory_is_divided():
    for name in ("llama", "gpt2", "gpt_neox", "mt5", "llama, lora", "reward of t5's decoder"):
        config = configs()[name if name != "mt5" else "t5 mt5"]
        whole = random_params(config)
        for text in MESHES:
            mesh = sharding.parse_mesh(text)
            one, model = expected_bytes(whole, mesh.shape["model"]), mesh.shape["model"]
            assert one <= sum(a.nbytes for a in jax.tree.leaves(whole)) / model**0.7
            params = sharding.shard_flat(whole, mesh)
            assert all(held(params, device) == one for device in jax.devices()), (name, text)


def check_the_state_of_training_lies_like_the_parameters_and_stays():
    mesh, whole = sharding.parse_mesh("data:2,model:4"), random_params(SMALL)
    params, one = sharding.shard_flat(whole, mesh), expected_bytes(whole, 4)
    eager = OPTIMIZER.init(params)
    state = jax.jit(OPTIMIZER.init, out_shardings=sharding.like_params(OPTIMIZER, params, mesh))(params)
    kept = jax.tree.map(lambda a: a.sharding, (params, state))
    step = jax.jit(make_step(SMALL), donate_argnums=(0, 1), out_shardings=(*kept, None, None))
    batch = sharding.shard_batch((random_batch(), np.float32(1)), mesh)
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
    config, mesh = configs()["llama, lora"], sharding.parse_mesh("data:2,model:4")
    params = sharding.shard_flat(flatten(random_params(config)), mesh)
    trained = {path: a for path, a in params.items() if path.endswith(("lora_a", "lora_b"))}
    state = sharding.like_params(OPTIMIZER, trained, mesh)
    mu = next(s for s in state[1] if hasattr(s, "mu")).mu
    assert mu["blocks.0.attention.out.lora_a"].spec == P("model", None)
    assert mu["blocks.0.attention.out.lora_b"].is_fully_replicated
    assert mu["blocks.1.feed_forward.up.lora_b"].spec == P(None, "model")
    assert mu.keys() == trained.keys()


def check_quantized_models_lie_like_others():
    mesh = sharding.parse_mesh("data:2,model:4")
    for name in ("llama, int8, lora", "llama, nf4"):
        config = configs()[name]
        params = random_params(config)
        placed = sharding.shard_flat(params, mesh)
        assert held(placed, jax.devices()[3]) < 0.4 * sum(a.nbytes for a in jax.tree.leaves(params))
        up, down = (placed["blocks"][0]["feed_forward"][each] for each in ("up", "down"))
        assert up["kernel"].sharding.spec == up["kernel_scale"].sharding.spec == P(None, "model")
        assert down["kernel"].sharding.spec == P("model", None)
        batch = random_batch()
        forward = jax.jit(lambda p, b, c=config: completion_logits(c, p, b))
        expected = forward(params, batch)
        logits = forward(placed, sharding.shard_batch(batch, mesh))
        assert_close({"logits": logits}, {"logits": expected}, 2e-5)


def check_files_go_straight_to_their_devices(folder):
    folder = Path(folder)
    raw, mesh = families.read_config(folder), sharding.parse_mesh("data:2,model:4")
    config = families.model_config(folder, raw)
    found = weights.find_params(folder, raw["model_type"], config)
    whole = flatten(weights.read_params(found, "float32"))
    place, made, read = sharding.place(mesh), {}, weights._read

    def counted(tensor, *rest):
        value = read(tensor, *rest)
        made.setdefault(tensor.name, []).append(value.shape)
        return value

    weights._read = counted
    params = flatten(weights.read_params(found, "float32", place))
    weights._read = read
    for path, value in params.items():
        np.testing.assert_array_equal(value, whole[path])
        shape = value.sharding.shard_shape(value.shape)
        assert set(made[found[path][0].name]) == {shape}, path
        assert {shard.data.shape for shard in value.addressable_shards} == {shape}
    for device in jax.devices():
        assert held(params, device) == expected_bytes(whole, 4)
    placed = flatten(sharding.param_shardings(config, mesh))
    assert all(params[path].sharding == placed[path] for path in params)


def check_texts_of_meshes():
    devices = jax.devices()
    for text, sizes in {
        None: (8, 1), "data:2,model:4": (2, 4), "model:4, data:2": (2, 4), "model:8": (1, 8), "data:8": (8, 1)
    }.items():  # fmt: skip
        mesh = sharding.parse_mesh(text)
        assert mesh.axis_names == ("data", "model") and mesh.devices.shape == sizes
        assert set(mesh.devices.flat) == set(devices)
    wrong = [
        "", "8", "data", "data:", "data:2", "data:0,model:8", "data:-1", "data:2,data:4", "rows:8", "data:2;model:4",
        "data:2,model:4,", "data:²,model:4", "data:2,model:5", "data:16", "data:2.0,model:4",
    ]  # fmt: skip
    for text in wrong:
        with pytest.raises(ValueError) as raised:
            sharding.parse_mesh(text)
        expected = f"mesh: expected data:N,model:M with N × M = 8 (8 cpu devices), got {text!r}"
        assert str(raised.value) == expected


def check_batches_are_dealt_by_rows():
    mesh, batch = sharding.parse_mesh("data:4,model:2"), random_batch()
    placed, beta = sharding.shard_batch((batch, np.float32(0.5)), mesh)
    assert isinstance(placed, Batch) and beta.sharding.is_fully_replicated and beta == 0.5
    for ours, host in zip(*map(jax.tree.leaves, (placed, batch)), strict=True):
        np.testing.assert_array_equal(ours, host)
        assert ours.sharding.spec == P("data") and ours.addressable_shards[0].data.shape[0] == 2
    parts = sharding.shard_batch({"tokens": np.zeros((3, 8, 5)), "betas": np.ones(3)}, mesh, axis=1)
    assert parts["tokens"].addressable_shards[0].data.shape == (3, 2, 5)
    assert parts["betas"].sharding.is_fully_replicated
    for ours, host in zip(*map(jax.tree.leaves, (sharding.shard_rows(batch, mesh), batch)), strict=True):
        np.testing.assert_array_equal(ours, host)
    np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
    told = r"^batch: expected a multiple of 4 rows \(mesh data:4,model:2\), found 6$"
    with pytest.raises(ValueError, match=told):
        sharding.shard_batch(random_batch(rows=6), mesh)
    with pytest.raises(ValueError, match=told):
        sharding.local_rows(mesh, 6)


# What runs in several processes.


def process(text):
    """Prints this process's view of two training steps, its rows told by `local_rows`."""
    sharding.start_processes()
    config, mesh, batch = SMALL, sharding.parse_mesh(text), random_batch()
    params = sharding.shard_flat(random_params(config), mesh)
    rows = sharding.local_rows(mesh, len(batch.tokens))
    fed = sharding.shard_batch((jax.tree.map(lambda a: a[rows], batch), np.float32(0.7)), mesh)
    for ours, other in zip(*map(jax.tree.leaves, (fed[0], sharding.shard_rows(batch, mesh))), strict=True):
        assert ours.shape == other.shape == (len(batch.tokens), other.shape[1])
        for one, two in zip(ours.addressable_shards, other.addressable_shards, strict=True):
            np.testing.assert_array_equal(one.data, two.data)
    places = sharding.like_params(OPTIMIZER, params, mesh)
    state = jax.jit(OPTIMIZER.init, out_shardings=places)(params)
    whole = NamedSharding(mesh, P())
    kept = jax.tree.map(lambda a: a.sharding, (params, state))
    step = jax.jit(make_step(config), out_shardings=(*kept, whole, whole))
    params, state, value, gradients = step(params, state, *fed)
    _, _, second, _ = step(params, state, *fed)
    told = {path: np.asarray(g).tolist() for path, g in flatten(gradients).items()}
    print(json.dumps([rows.tolist(), float(value), float(second), told]))


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def environment(devices, **more):
    # Compiling takes most of the time, whatever the programs do.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more


@pytest.mark.parametrize("text, devices", [("data:2,model:2", 2), ("model:2", 1)])
def test_two_processes_take_the_step_of_one(text, devices, tmp_path):
    command = [sys.executable, "-m", "tests.test_sharding", "process", text]
    address, started = f"127.0.0.1:{free_port()}", []
    outs = [tmp_path / "0", tmp_path / "1"]
    for number, path in enumerate(outs):
        numbers = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        # Files, not pipes: a full pipe would keep one from the barrier where the other waits.
        with path.open("w") as out:
            env = environment(devices, **numbers)
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=env))
    try:
        codes = [each.wait(timeout=120) for each in started]
    finally:
        for each in started:
            each.kill()
    told = [path.read_text() for path in outs]
    assert codes == [0, 0], told
    params, batch, beta = random_params(SMALL), random_batch(), np.float32(0.7)
    step = jax.jit(make_step(SMALL))
    after = step(params, OPTIMIZER.init(params), batch, beta)
    second = step(*after[:2], batch, beta)[2]
    fed = []
    for out in told:
        rows, *values, gradients = json.loads(
            next(line for line in out.splitlines() if line.startswith("[["))
        )
        fed.append(rows)
        np.testing.assert_allclose(values, [after[2], second], rtol=1e-5)
        assert_close({path: np.array(g) for path, g in gradients.items()}, flatten(after[3]), 1e-4)
    assert fed == ([[0, 1, 2, 3], [4, 5, 6, 7]] if "data" in text else [[*range(8)]] * 2)


@pytest.mark.parametrize(
    "given",
    [
        ("127.0.0.1:1234", None, None),
        (None, 2, 0),
        ("127.0.0.1:1234", 2, 2),
        ("127.0.0.1:1234", 0, 0),
        ("127.0.0.1", 2, 0),
        ("127.0.0.1:port", 2, 0),
        (":1234", 2, 0),
        ("127.0.0.1:1234", 2, -1),
    ],
)
def test_processes_that_cannot_be(given, monkeypatch):
    for name in sharding.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"^processes: expected a coordinator host:port, [^\n]*; (got|missing) [^\n]*$"
    ):
        sharding.start_processes(*given)
    sharding.start_processes()  # nothing asked, nothing done


def test_a_cluster_that_is_none(monkeypatch):
    def fail(*_, **__):  # as JAX does where no cluster is found
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"^--coordinator=auto: found no cluster here [^\n]*$"):
        sharding.start_processes("auto")


def test_one_device_is_a_mesh_of_one():
    mesh, params, batch = sharding.parse_mesh(), random_params(SMALL), random_batch()
    assert mesh.shape == {"data": jax.device_count(), "model": 1}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
    placed = sharding.shard_flat(params, mesh)
    compute = jax.jit(gradient(SMALL))
    ours = compute(placed, sharding.shard_batch(batch, mesh), 1.0)
    jax.tree.map(np.testing.assert_array_equal, ours, compute(params, batch, 1.0))
    np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
    places = sharding.like_params(OPTIMIZER, placed, mesh)
    assert jax.tree.structure(places) == jax.tree.structure(OPTIMIZER.init(params))
    path = "blocks.0.attention.out.kernel"
    assert sharding.place(mesh)(path, (32, 32)) == flatten(placed)[path].sharding


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}


@pytest.fixture(scope="module")
def outcomes(stories):
    """Each check's traceback, or nothing."""
    command = [sys.executable, "-m", "tests.test_sharding", "checks", str(stories)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(8), cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


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
    {"checks": run_checks, "process": process}[sys.argv[1]](sys.argv[2])
