"""Plans for TPUs that are not here: what the compiler makes of 7B models, against arithmetic."""

import json
from dataclasses import replace

import jax
import pytest

from dera_jax import models
from dera_jax.commands.plan import main
from dera_jax.decoding.sampling import Sampling
from dera_jax.performance.plan import plan, programs
from dera_jax.performance.plan.chips import parse_slice
from dera_jax.performance.plan.plan import Question
from dera_jax.policies.sizes import SIZES, Sized, read_size

LIBTPU = pytest.mark.skipif(
    programs.importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
PUBLISHED = {
    "mistral-7b": 7_241_732_096,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
}
"""Parameters, as the safetensors files of these models on the hub count them."""
ROWS, CONTEXT = 16, 2048
LAYERS = 8
"""Of the models that decode: a quarter of a 7B model, which is compiled in a quarter of the time."""
EMBEDDINGS = 2 * 32000 * 4096 / 8
"""Bytes of Mistral's on each of eight devices, looked up and not read."""


def shallow(model: Sized, layers: int) -> Sized:
    """Returns a model of its width with fewer layers."""
    config = model.config
    adapters = tuple(one for one in config.adapters if int(one.path.split(".")[1]) < layers)
    windows = config.windows[:layers]
    return replace(model, config=replace(config, num_layers=layers, adapters=adapters, windows=windows))


def compile_decoding(names, slice_name="v5e:2x4", rows=ROWS, quantize=None, layers=LAYERS):
    sized = [shallow(read_size(name, quantize=quantize), layers) for name in names]
    slice_ = parse_slice(slice_name)
    mesh = programs.tpu_mesh(slice_, (1, slice_.devices))
    sampling = Sampling.create(0.7, 50, 0.95, slice_.devices)
    return plan.compile_job(programs.decode_job(sized, mesh, rows, CONTEXT, 128, sampling))


@pytest.fixture
def least_effort():
    """Lets the compiler search less for what is fastest, which memory and operations do not depend on."""
    effort = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", effort)


@pytest.fixture(scope="module")
def pair():
    return compile_decoding(["mistral-7b", "mistral-7b"])


def parameters(model: Sized) -> int:
    return sum(a.size for a in jax.tree.leaves(models.param_shapes(model.config)))


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes_have_their_models_parameters(name):
    model = read_size(name)
    one, two = (parameters(shallow(model, layers)) for layers in (1, 2))
    assert one + (model.config.num_layers - 1) * (two - one) == PUBLISHED[name]


def least_bytes(names, layers=LAYERS) -> float:
    """Returns a device's weights, those of one base once, and caches: models, layers, keys and values, bytes."""
    sized = [shallow(read_size(name), layers) for name in names]
    alone = sum(parameters(model) for model in sized if not model.config.adapters)
    adapted = sum(parameters(model) - parameters(sized[0]) for model in sized if model.config.adapters)
    return (2 * (alone + adapted) + len(names) * layers * 2 * ROWS * 8 * CONTEXT * 128 * 2) / 8


@pytest.mark.slow
@LIBTPU
def test_the_pair_fits_and_its_arguments_are_what_arithmetic_says(pair):
    names = ["mistral-7b", "mistral-7b"]
    whole = least_bytes(names, 32)
    assert whole == pytest.approx(4.695e9, rel=1e-3)
    # Norms lie on every device.
    assert sum(pair.arguments.values()) == pytest.approx(least_bytes(names), rel=1e-3)
    assert 0 <= pair.padding < 1e6
    # What grows with the layers is taken to grow as they do.
    assert whole + 32 / LAYERS * (pair.padding + pair.temporary + pair.code) < 16e9


@pytest.mark.slow
@LIBTPU
def test_a_step_of_the_pair_reads_weights_and_caches_once(pair):
    assert pair.loop.trips == pair.steps
    # Embeddings are looked up: the rest is the least that can be.
    read = sum(pair.arguments.values()) - 2 * EMBEDDINGS
    assert read - 1e6 <= pair.loop.body.moved <= 1.03 * read
    # With the merge of the chunk's keys and values into the caches.
    assert pair.cost.moved / pair.steps <= 1.03 * read
    assert pair.cost.unknown == ()


@pytest.mark.slow
@LIBTPU
def test_nothing_of_rows_times_vocabulary_crosses_chips(pair):
    large = ROWS * 32000 // 8
    assert pair.loop.body.collectives
    for each in pair.loop.body.collectives:
        for shape in each.shapes:
            assert shape.size < large or 4096 in shape.dims, (each.kind, str(shape), each.op_name)


@pytest.mark.slow
@LIBTPU
def test_operations_of_the_pair(pair):
    model = shallow(read_size("mistral-7b"), LAYERS)
    asked = Question((model, model), parse_slice("v5e:2x4"), (1, 8), ROWS, CONTEXT)
    found = plan.measure(asked, pair)
    weights = parameters(model) - 32000 * 4096 - (2 * LAYERS + 1) * 4096  # no embedding, no norms
    attention = 4 * 32 * 128 * LAYERS * CONTEXT
    assert found.least_flops == 2 * ROWS * (2 * weights + attention) / 8
    assert 1 <= found.flops / found.least_flops < 1.02
    # Decoding waits for memory.
    assert found.seconds == found.moved / 819e9
    read = least_bytes([model.name, model.name]) - 2 * EMBEDDINGS
    assert 0.99 * read / 819e9 < found.seconds < 1.04 * read / 819e9


@pytest.mark.slow
@LIBTPU
def test_a_pair_on_one_base_reads_it_once():
    names = ["mistral-7b", "mistral-7b+lora:64"]
    assert least_bytes(names, 32) == pytest.approx(2.926e9, rel=1e-3)
    found = compile_decoding(names)
    assert found.loop.body.moved <= 1.06 * (least_bytes(names) - EMBEDDINGS)
    assert list(found.arguments) == ["weights of mistral-7b and mistral-7b+lora:64", "caches"]


@pytest.mark.slow
@LIBTPU
def test_the_pair_in_four_bits_fits_one_chip(least_effort):
    rows, layers, whole = 8, 2, 32
    found = compile_decoding(["mistral-7b", "mistral-7b"], "v5e:1x1", rows, "nf4", layers)
    deep = read_size("mistral-7b", quantize="nf4")
    mesh = programs.tpu_mesh(parse_slice("v5e:1x1"), (1, 1))
    held = programs.decode_job([deep, deep], mesh, rows, CONTEXT, 128, Sampling.create()).arguments
    arguments = sum(map(programs.device_bytes, held.values()))
    # Half a byte and a sixteenth for the scales; embedding and head stay.
    maps = PUBLISHED["mistral-7b"] - 2 * 32000 * 4096 - 65 * 4096
    caches = 2 * 32 * 2 * rows * 8 * CONTEXT * 128 * 2
    assert arguments == pytest.approx(2 * (maps * (1 / 2 + 4 / 64) + 2 * 32000 * 4096 * 2) + caches, rel=1e-3)
    # What grows with the layers is taken to grow as they do.
    deeper = whole / layers
    assert arguments + found.padding + deeper * (found.temporary + found.code) < 16e9


@pytest.mark.slow
@LIBTPU
def test_a_step_of_dpo_with_its_memory(least_effort):
    """Of a whole model: 16 pairs of 2 048 tokens."""
    policy, pairs, length = read_size("mistral-7b"), 16, 2048
    config = replace(policy.config, remat=True)
    slice_ = parse_slice("v5p:2x2x2")
    found = plan.compile_job(
        programs.dpo_job(config, programs.tpu_mesh(slice_, (1, 8)), pairs, length, length // 2)
    )
    params = PUBLISHED["mistral-7b"]
    assert found.arguments["trained weights, float32"] == pytest.approx(4 * params / 8, rel=1e-3)
    assert found.arguments["moments of AdamW"] == pytest.approx(8 * params / 8, rel=1e-3)
    # What blocks read is kept of each completion in bfloat16, and their weights in bfloat16.
    kept = 2 * (32 * 2 * pairs * length * 4096 + params / 8)
    print(
        f"{found.total / 1e9:.1f} of {slice_.hbm / 1e9:.0f} GB on {slice_.name}, {found.temporary / 1e9:.1f} temporary"
    )
    assert kept < found.temporary < 2.5 * kept and found.total < slice_.hbm
    # Each of two completions of each pair, forward, again for the gradients, and twice for those; of what is
    # done again the last product of a block is left out, and what splash does is not counted.
    maps = params - 2 * 32000 * 4096
    assert found.cost.flops == pytest.approx(4 * 2 * 2 * pairs * length * maps / 8, rel=0.1)
    assert {"all-reduce"} <= {each.kind for each in found.cost.collectives}


def _asked(**more) -> Question:
    toy = replace(read_size("qwen2.5-0.5b"), name="small")
    return Question((toy, toy), parse_slice("v5e:2x2"), (2, 2), **more)


@pytest.fixture
def arithmetic(monkeypatch):
    """A compiler whose programs take 1 MB a row of a device, and that has no chips to compile for."""
    compiled = []

    def job(question):
        return [question]

    def compile_job(question):
        compiled.append(question)
        rows = question.rows // question.shape[0]
        return programs.Compiled(
            "decode", 16, {"weights": int(8e9 / question.shape[1]), "caches": rows * 4_000_000}, rows * 1_000_000,
            0, None, None,
        )  # fmt: skip

    monkeypatch.setattr(plan, "jobs", job)
    monkeypatch.setattr(plan, "compile_job", compile_job)
    return compiled


def test_the_most_rows_are_found_by_arithmetic_and_compiled(arithmetic):
    found = plan._most_rows(_asked(), [plan.compile_job(_asked())], lambda _: None)
    # 12 GB are left on each of two rows of devices; a prompt's caches, 3.75 MB, among them.
    assert found == 2 * plan.MOST_ROWS < 2 * (16e9 - 4e9) / 5e6
    assert arithmetic[-1].rows == found


def test_what_does_not_fit_has_fewer_rows(arithmetic):
    asked = replace(_asked(rows=4096), slice_=parse_slice("v5e:2x2"))
    first = plan.compile_job(asked)
    heavy = replace(first, temporary=20_000_000_000)
    found = plan._most_rows(asked, [heavy], lambda _: None)
    assert 0 < found < 4096
    fewer = replace(asked, rows=found)
    assert sum(plan.memory_of(fewer, [plan.compile_job(fewer)]).values()) < 16e9


@pytest.mark.parametrize(
    ("dtype", "kind", "size"),
    [("bfloat16", "auto", 2), ("float32", "bfloat16", 2), ("bfloat16", "int8", 1 + 4 / 64)],
)
def test_caches_count_as_they_are_kept(dtype, kind, size):
    small = read_size("qwen2.5-0.5b", dtype)  # heads of 64 numbers
    small = replace(small, config=replace(small.config, kv_cache=kind))
    asked = replace(_asked(rows=4, context=512, new_tokens=128), sized=(small, small))
    a_token = 2 * small.config.num_layers * small.config.num_kv_heads * 64 * size
    assert plan._cache_bytes(asked) == 2 * a_token * 384 / 2  # two devices divide the heads
    mesh = jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1])
    caches = programs.decode_job([small, small], mesh, 4, 512, 128, Sampling.create()).arguments["caches"]
    # What tells the places in use is small beside them.
    assert programs.device_bytes(caches) == pytest.approx(2 * 4 * 512 * a_token, rel=1e-2)


def test_a_vocabulary_that_the_mesh_does_not_divide_is_noted():
    note = "small: model:3 does not divide the vocabulary of 151936 (151936 = 50645 × 3 + 1): "
    (told,) = plan._notes(replace(_asked(), mesh=(2, 3)))
    assert told.startswith(note)
    assert plan._notes(_asked()) == ()


def test_meshes_that_suit_the_heads():
    mistral, qwen = read_size("mistral-7b").config, read_size("qwen2.5-7b").config
    assert plan.default_mesh([mistral, mistral], 8) == (1, 8)
    assert plan.default_mesh([mistral], 16) == (2, 8)
    assert plan.default_mesh([mistral, qwen], 16) == (4, 4)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--topology=v5e:3x3"],
            "topology: expected one of v5e:1x1|2x2|2x4|4x4|4x8|8x8|8x16|16x16 (v5litepod-N); ",
        ),
        (["--topology=H100"], "topology: expected one of v4:"),
        (["--reference=no-such-model", "--aligned=mistral-7b"], "no-such-model: expected a folder, a hub id"),
        (["--mesh=data:3,model:2"], "expected rows that 3 divides, found 16"),
        (["--mesh=columns:2"], "--mesh: expected data:N,model:M, got 'columns:2'"),
        (["--context=64"], "context: expected more than the 128 new tokens, found 64"),
        (["--rows=none"], "--rows: expected a whole number"),
        (["--reference=mistral-7b", "--aligned=mistral-7b+lora:0"], "+lora:0: expected +lora:RANK"),
        (["--quantize=int4"], "expected int8, nf4 or none, found 'int4'"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(argv, line, capsys):
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    assert main(["--reference=mistral-7b", "--aligned=mistral-7b"]) == 2
    told = capsys.readouterr().err
    assert f"pip install {programs.LIBTPU}" in told and told.count("\n") == 1


@LIBTPU
def test_devices_that_a_mesh_does_not_make_up(capsys):
    assert main(["--topology=v5e:2x2", "--mesh=data:1,model:8"]) == 2
    assert "mesh data:1,model:8: expected 4 devices (v5e:2x2), found 8" in capsys.readouterr().err


@pytest.mark.slow
@LIBTPU
def test_the_command_prints_and_writes_what_it_found(tmp_path, capsys, least_effort):
    out = tmp_path / "plan.json"
    argv = [
        "--topology=v5litepod-4",
        "--rows=8",
        "--context=256",
        "--top-k=5",
        "--kv-cache=int8",
        "--no-search",
    ]
    assert main([*argv, f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert "fits in 16 GB" in printed and found["fits"]
    assert found["topology"] == "v5e:2x2" and found["mesh"] == {"data": 1, "model": 4}
    assert [program["name"] for program in found["programs"]] == ["prefill", "decode"]
    # Models, layers, keys and values, rows, tokens: a head of each device has 10 numbers and their scale.
    codes = 2 * 4 * 2 * 8 * 256 * (10 + 4)
    assert found["kv_cache"] == "int8" and codes < found["memory"]["caches"] < 1.05 * codes
    assert found["notes"] == []
    assert found["total"] == sum(found["memory"].values())
    for program in found["programs"]:
        assert program["seconds"] == max(program["moved"] / 819e9, program["flops"] / 197e12)
        assert program["flops"] >= 0.99 * program["least_flops"]
        assert program["unknown_loops"] == []
