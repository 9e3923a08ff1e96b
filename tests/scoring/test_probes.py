"""Gates: probes of a prompt's last hidden state, and prompts that they give a strength."""

import json

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.commands import steer, sweep, weigh
from dera_jax.policies.steering import Steering, read_steering, write_steering
from dera_jax.results.reading import read_rows
from dera_jax.scoring.probes import accuracies, fit_probes, prompt_states, says_yes
from tests.support.torch_models import random_model, save, torch

GLAD, SAD = ["happy", "glad", "fun", "smiled", "a party"], ["sad", "cried", "hurt", "a tear", "angry"]


def test_a_probe_says_which_mean_is_nearer():
    rng = np.random.default_rng(0)
    states, yes = rng.standard_normal((40, 3, 8)).astype(np.float32), np.arange(40) % 3 == 0
    for layer, probe in enumerate(fit_probes(states, yes)):
        means = [states[kind, layer].mean(axis=0) for kind in (yes, ~yes)]
        far = [np.linalg.norm(states[:, layer] - mean, axis=-1) for mean in means]
        assert (says_yes(probe, states) == (far[0] < far[1])).all()


def test_the_layer_of_a_planted_kind_is_found_on_prompts_that_were_not_read():
    rng = np.random.default_rng(1)
    states, yes = rng.standard_normal((200, 3, 8)).astype(np.float32), rng.random(200) < 0.2
    states[yes, 1] += 4
    right = accuracies(fit_probes(states[:100], yes[:100]), states[100:], yes[100:])
    assert right[1] > 0.99 and max(right[0], right[2]) < 0.7


def test_prompts_of_one_kind_have_no_probe():
    with pytest.raises(ValueError, match="expected prompts of both kinds, found 4 of one"):
        fit_probes(np.zeros((4, 1, 2), np.float32), np.ones(4, bool))


def test_states_are_those_of_torch_at_the_last_token(tmp_path, toy):
    model = random_model({})
    policy = load_policy(save(model, tmp_path, toy))
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, 500, size=n).tolist() for n in (2, 9, 17, 5)]
    blocks, states = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), []
    for block in blocks:
        block.register_forward_hook(
            lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
    for ids, found in zip(prompts, prompt_states(policy, prompts, 3), strict=True):
        states.clear()
        with torch.no_grad():
            model(torch.tensor([ids]))
        expected = np.stack([state.reshape(-1, state.shape[-1])[-1].numpy() for state in states])
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.fixture(scope="module")
def gated(toy, tmp_path_factory):
    """A steering file with a gate, the labelled prompts, and the prompts with the strengths it gives."""
    folder = tmp_path_factory.mktemp("gate")
    names = ["Tom", "Mia", "Ben", "Ann"]
    records = [
        {"id": f"{name} {word}", "prompt": f"{name} was {word}", "label": word in SAD}
        for name in names
        for word in GLAD + SAD
    ]
    labelled, pairs = folder / "labelled.jsonl", folder / "pairs.jsonl"
    labelled.write_text("".join(json.dumps(record) + "\n" for record in records))
    said = [
        {"prompt": name, "chosen": f" was {a}.", "rejected": f" was {b}."}
        for name in names
        for a, b in zip(GLAD, SAD, strict=True)
    ]
    pairs.write_text("".join(json.dumps(record) + "\n" for record in said))
    file, out = folder / "s.safetensors", folder / "gated.jsonl"
    words = [f"--model={toy}", f"--data={pairs}", f"--gate={labelled}", f"--out={file}"]
    assert steer.main(words) == 0
    assert (
        weigh.main(
            [f"--reference={toy}", f"--prompts={labelled}", f"--gate={file}", "--lambda=1.5", f"--out={out}"]
        )
        == 0
    )
    return file, labelled, out


def test_a_gate_gives_each_prompt_the_strength_or_none(gated, toy):
    file, labelled, out = gated
    asked, given = ([json.loads(line) for line in path.read_text().splitlines()] for path in (labelled, out))
    assert [{k: v for k, v in record.items() if k != "lambda"} for record in given] == asked
    policy, probe = load_policy(toy), read_steering(file).probe
    ids = [policy.tokenizer(record["prompt"])["input_ids"] for record in asked]
    opens = says_yes(probe, prompt_states(policy, ids))
    assert [record["lambda"] for record in given] == [1.5 if each else 0 for each in opens]
    # Words that the probe has read, if with other names.
    assert np.mean(opens == [record["label"] for record in asked]) > 0.7


def test_prompts_that_stay_shut_are_answered_by_the_reference(gated, toy, tmp_path):
    file, _, out = gated
    words = [
        f"--reference={toy}",
        f"--steer={file}",
        f"--prompts={out}",
        "--lambda=prompt",
        "--num-prompts=12",
    ]
    assert sweep.main([*words, "--max-new-tokens=8", f"--out={tmp_path / 'run'}"]) == 0
    kl = {row["lambda"]: [] for row in read_rows(tmp_path / "run")}
    for row in read_rows(tmp_path / "run"):
        kl[row["lambda"]].append(row["kl_to_reference"])
    assert set(kl) == {0, 1.5} and set(kl[0]) == {0.0} and min(kl[1.5]) > 0


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("perhaps", "label: expected true or false, found 'perhaps'"),
        (None, "expected true or false, found None"),
    ],
)
def test_prompts_without_a_label_are_told(fails, gated, toy, tmp_path, label, told):
    file, _, _ = gated
    pairs = file.parent / "pairs.jsonl"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Tom ran", "label": label}) + "\n")
    words = [
        f"--model={toy}",
        f"--data={pairs}",
        f"--gate={tmp_path / 'p.jsonl'}",
        f"--out={tmp_path / 's.safetensors'}",
    ]
    assert told in fails(steer.main, *words)
    assert not (tmp_path / "s.safetensors").exists()


def test_files_and_strengths_without_a_gate_are_told(fails, gated, toy, tmp_path):
    file, labelled, _ = gated
    words = [f"--reference={toy}", f"--prompts={labelled}", f"--out={tmp_path / 'o.jsonl'}"]
    assert "expected one strength with --gate, found 2" in fails(
        weigh.main, *words, f"--gate={file}", "--lambda=0,1"
    )
    found = read_steering(file)
    write_steering(tmp_path / "n.safetensors", Steering(found.width, found.num_layers, found.vectors))
    assert "expected a gate in it" in fails(weigh.main, *words, f"--gate={tmp_path / 'n.safetensors'}")
    write_steering(
        tmp_path / "w.safetensors",
        Steering(8, 4, {0: np.ones(8)}, found.probe and type(found.probe)(0, np.ones(8), 0.0)),
    )
    assert "found width 8 and 4 layers" in fails(weigh.main, *words, f"--gate={tmp_path / 'w.safetensors'}")
    assert not (tmp_path / "o.jsonl").exists()
