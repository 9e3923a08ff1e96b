"""eval.steer: a planted direction is found again, its file steers, and bad input is one line."""

import json

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import generate, score, steer
from dera_jax.commands.options.steering import split_steer, with_strength
from dera_jax.data.examples import Pair, encode_pairs
from dera_jax.data.records import load_records
from dera_jax.policies.policy import TOY
from dera_jax.policies.steering import Steering, read_steering, steered, write_steering
from dera_jax.scoring.steering import best_layer, layer_figures, mean_difference, pair_differences
from tests.support.processes import environment, finish, run
from tests.support.torch_models import random_model, save, torch

SAID = [" was happy.", " was so glad today.", " smiled and smiled.", " had fun."]
OTHER = [" was sad.", " cried.", " was so angry today.", " fell down."]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    names = ["Lily", "Tom", "Ben", "Anna", "Mia"]
    lines = [
        json.dumps({"prompt": name, "chosen": good, "rejected": bad})
        for name in names
        for good, bad in zip(SAID, OTHER, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("at", ["last", "mean"])
def test_differences_are_those_of_torch(tmp_path, toy, at):
    """Hidden states by torch, each text by itself, whatever batch ours were read in."""
    model = random_model({})
    policy = load_policy(save(model, tmp_path, toy))
    numbers = np.random.default_rng(0)

    def drawn(count):
        return tuple(numbers.integers(3, 500, size=count).tolist())

    pairs = [
        Pair(drawn(n), (*drawn(m), 1), (*drawn(m + 2), 1))
        for n, m in [(3, 4), (17, 2), (5, 9), (1, 1), (8, 3)]
    ]
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    states: list = []
    for block in blocks:
        block.register_forward_hook(
            lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)
        )

    def of(prompt, completion):
        states.clear()
        with torch.no_grad():
            model(torch.tensor([[*prompt, *completion[:-1]]]))
        each = np.stack([state.reshape(-1, state.shape[-1]).numpy() for state in states])
        return each[:, -1] if at == "last" else each[:, len(prompt) :].mean(axis=1)

    expected = np.stack([of(p.prompt, p.chosen) - of(p.prompt, p.rejected) for p in pairs])
    np.testing.assert_allclose(pair_differences(policy, pairs, 4, at), expected, atol=2e-4)


def test_a_planted_direction_is_found_at_its_layer():
    numbers = np.random.default_rng(0)
    planted = numbers.standard_normal(16)
    differences = numbers.standard_normal((400, 3, 16)).astype(np.float32)
    differences[:, 1] += 2 * planted
    vectors = mean_difference(differences[:300])
    figures = layer_figures(vectors, differences[300:])
    cosine = vectors[1] @ planted / np.linalg.norm(vectors[1]) / np.linalg.norm(planted)
    assert cosine > 0.99 and best_layer(figures) == 1
    assert figures[1].accuracy == 1.0 and abs(figures[0].accuracy - 0.5) < 0.2


def test_its_file_steers_the_aligned_model_and_not_the_reference(toy, pairs, tmp_path, call):
    out = tmp_path / "joy.safetensors"
    code, told, _ = call(steer.main, f"--model={toy}", f"--data={pairs}", f"--out={out}", "--at=mean")
    assert code == 0 and "accuracy" in told and "held-out pairs" in told
    assert read_steering(out).width == load_policy(toy).config.width
    words = f"--pairs={pairs}", f"--reference={toy}", "--lambda=0,1"
    accuracies = []
    for strength in (-2, 2):
        saved = tmp_path / f"{strength}.json"
        assert call(score.main, *words, f"--steer={out}@{strength}", f"--out={saved}")[0] == 0
        accuracies.append([each["accuracy"]["mean"] for each in json.loads(saved.read_text())])
    assert accuracies[0][0] == accuracies[1][0] and accuracies[0][1] != accuracies[1][1]


def test_strengths_and_several_models_on_the_command_line(toy, tmp_path, call):
    policy, files = load_policy(toy), []
    for seed in (1, 2):
        vector = np.random.default_rng(seed).standard_normal(policy.config.width).astype(np.float32)
        files.append(tmp_path / f"{seed}.safetensors")
        write_steering(files[-1], Steering(policy.config.width, policy.config.num_layers, {1: vector}))
    words = f"--reference={toy}", "--prompt=Once", "--max-new-tokens=8", "--temperature=0"
    code, out, err = call(generate.main, *words, f"--steer={files[0]}@2,{files[1]}", "--lambda=1+0,0.5+0.5")
    assert code == 0 and "loaded 3 models" in err and "held once" in err and "0.5+0.5" in out
    code, _, _ = call(generate.main, *words, f"--aligned={toy}", f"--steer={files[0]}")
    assert code == 0


def test_a_strength_in_the_option():
    text = "a.safetensors@-1/2,none,b.safetensors"
    assert split_steer(text) == [("a.safetensors", -0.5), None, ("b.safetensors", 1.0)]
    assert with_strength("a.safetensors,none", 2) == "a.safetensors@2,none"


@pytest.mark.parametrize(
    "option, message",
    [
        ("--steer=x", "expected FILE.safetensors"),
        ("--steer=none.safetensors", "no such file"),
        ("--steer=a.safetensors@x", "expected one number"),
        ("--steer=a.safetensors@1:2:1", "expected one number"),
        ("--steer=a.safetensors@nan", "expected one number"),
        ("--steer=a.safetensors,", "expected FILE.safetensors"),
    ],
)
def test_bad_options_are_one_line(toy, refused, option, message):
    assert message in refused(generate.main, f"--reference={toy}", option)


def test_a_folder_is_no_steering_file(toy, tmp_path, fails):
    (tmp_path / "d.safetensors").mkdir()
    told = fails(generate.main, f"--reference={toy}", f"--steer={tmp_path / 'd.safetensors'}")
    assert "expected a steering file, found a folder" in told


def test_a_file_of_another_width_is_one_line(toy, tmp_path, fails):
    write_steering(tmp_path / "s.safetensors", Steering(8, 4, {0: np.ones(8, np.float32)}))
    told = fails(generate.main, f"--reference={toy}", f"--steer={tmp_path / 's.safetensors'}")
    assert "found width 8 and 4 layers" in told


@pytest.mark.parametrize(
    "options, message",
    [
        (["--layers=4"], "expected numbers from 0 to 3"),
        (["--layers=-1"], "expected numbers from 0 to 3"),
        (["--eval-share=0"], "expected --layers"),
        (["--rows=0"], "--rows"),
        (["--out=x.bin"], "ends in .safetensors"),
    ],
)
def test_eval_steer_refuses(toy, pairs, tmp_path, fails, options, message):
    words = f"--model={toy}", f"--data={pairs}", f"--out={tmp_path / 's.safetensors'}"
    assert message in fails(steer.main, *words, *options)
    assert not list(tmp_path.iterdir())


def test_states_of_a_steered_model_are_behind_its_vectors(toy):
    """What is added behind a block is in its state: vectors are made where they are added."""
    policy = load_policy(toy)
    vector = np.ones(policy.config.width, np.float32)
    moved = steered(policy, Steering(policy.config.width, policy.config.num_layers, {0: vector}))
    pair = [Pair((5,), (7, 1), (9, 1))]
    plain, shifted = (pair_differences(each, pair) for each in (policy, moved))
    np.testing.assert_allclose(plain[:, 0], shifted[:, 0], atol=1e-5)
    assert abs(plain[:, 1] - shifted[:, 1]).max() > 1e-4


@pytest.mark.parametrize(("mesh", "devices"), [("data:2,model:2", 4), ("data:3,model:1", 3)])
def test_vectors_of_a_mesh_are_those_of_one_device(mesh, devices, pairs, tmp_path, call):
    """Where the mesh does not divide the texts that are read at a time, too: pairs stay pairs."""
    model, wanted, found = (
        f"--model={TOY / 'reference'}",
        tmp_path / "one.safetensors",
        tmp_path / "four.safetensors",
    )
    words = [model, f"--data={pairs}", "--layers=all"]
    assert call(steer.main, *words, f"--out={wanted}")[0] == 0
    finish(run("eval.steer", *words, f"--mesh={mesh}", f"--out={found}", env=environment(devices)))
    expected = read_steering(wanted).vectors
    for layer, vector in read_steering(found).vectors.items():
        np.testing.assert_allclose(vector, expected[layer], atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_vectors_of_quantized_weights_are_the_quantized_models(kind, pairs, tmp_path, call):
    model, out = TOY / "reference", tmp_path / "v.safetensors"
    words = [f"--model={model}", f"--data={pairs}", "--layers=all", "--eval-share=0", f"--quantize={kind}"]
    assert call(steer.main, *words, f"--out={out}")[0] == 0
    fewer, whole = (load_policy(model, quantize=each) for each in (kind, None))
    encoded, _ = encode_pairs(fewer, load_records(str(pairs)), fewer.config.max_positions)
    found = read_steering(out).vectors
    for policy, same in ((fewer, True), (whole, False)):
        expected = mean_difference(pair_differences(policy, encoded))
        assert np.allclose([found[n] for n in range(len(expected))], expected, atol=1e-5) is same
