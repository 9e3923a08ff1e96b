"""Weight-combined models, from Python and by the command."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import generate, load_policies, load_policy
from dera_jax.commands.combine import main
from dera_jax.models.trees import flatten
from dera_jax.policies.combine import _slerp, combine
from dera_jax.policies.policy import with_params
from tests.support.torch_models import our_logits, padded, torch_logits

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM  # noqa: E402


def test_linear_is_the_sum(pair):
    reference, aligned = (flatten(policy.params) for policy in pair)
    for strength in (0.3, 2.0, -0.5):
        for path, value in flatten(combine(pair, (strength,)).params).items():
            exact = (1 - strength) * np.float64(reference[path]) + strength * np.float64(aligned[path])
            np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_the_ends_are_the_models(pair, method):
    for strength, policy in zip((0.0, 1.0), pair, strict=True):
        combined = flatten(combine(pair, (strength,), method).params)
        for path, value in flatten(policy.params).items():
            np.testing.assert_allclose(combined[path], value, atol=0 if method == "linear" else 1e-6)


def test_two_aligned_models(pair):
    reference, aligned = pair
    third = with_params(reference, jax.tree.map(lambda a: 2 * a, reference.params))
    found = flatten(combine([reference, aligned, third], (0.5, 0.25)).params)
    for path, value in flatten(reference.params).items():
        expected = 0.25 * value + 0.5 * flatten(aligned.params)[path] + 0.25 * 2 * value
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 1.7])
def test_slerp_turns_at_constant_speed(strength):
    """Unit vectors stay unit vectors, and the angle to the first is λ times the whole."""
    first, second = (jax.random.normal(jax.random.key(n), (4, 5)) for n in (0, 1))
    first, second = first / jnp.linalg.norm(first), second / jnp.linalg.norm(second)
    found = _slerp(first, second, strength)
    whole = np.arccos(np.vdot(first, second))
    np.testing.assert_allclose(jnp.linalg.norm(found), 1, rtol=1e-5)
    np.testing.assert_allclose(np.arccos(np.vdot(first, found)), strength * whole, rtol=1e-4)


def test_slerp_of_parallel_tensors_is_linear():
    first = jax.random.normal(jax.random.key(0), (4, 5))
    for second in (first, 3 * first, first * (1 + 1e-6), 0 * first):
        found = _slerp(first, second, 0.25)
        np.testing.assert_allclose(found, 0.75 * first + 0.25 * second, rtol=1e-4, atol=1e-6)


def test_bfloat16_stays(toy):
    policy = load_policy(toy, "bfloat16")
    combined = combine((policy, policy), (0.5,))
    assert all(
        (a == b).all() for a, b in zip(*map(jax.tree.leaves, (combined.params, policy.params)), strict=True)
    )


def test_a_combination_is_not_a_realignment(pair):
    """It would be, if the logits were linear in the weights."""
    tokens, mask = padded()
    ends = [our_logits(policy, tokens, mask) for policy in pair]
    combined = our_logits(combine(pair, (0.5,)), tokens, mask)
    assert abs(combined - (ends[0] + ends[1]) / 2)[mask].mean() > 0.01


def test_the_command_writes_what_transformers_loads(tmp_path, capsys):
    out = tmp_path / "half"
    assert main([f"--out={out}", "--lambda=0.5"]) == 0
    print(capsys.readouterr().out)
    policy, pair = load_policy(out), load_policies()
    expected = combine(pair, (0.5,))
    tokens, mask = padded()
    theirs = torch_logits(AutoModelForCausalLM.from_pretrained(out), tokens, mask).numpy()
    np.testing.assert_allclose(our_logits(expected, tokens, mask)[mask], theirs[mask], atol=2e-4)
    assert generate((policy,), ["Once"], (), max_new_tokens=4)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["lambda"] == 0.5 and manifest["method"] == "linear"
    assert [m["fingerprint"] for m in manifest["models"]] == [p.fingerprint for p in pair]
    assert policy.beta is None


def test_refusals(tmp_path, toy, capsys):
    def refused(*argv):
        assert main([*argv, f"--out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        return error

    for option in ("--quantize=int8", "--chat-template=x"):
        with pytest.raises(SystemExit) as stopped:
            main([option, "--lambda=0.5", "--out=x"])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: unknown option {option.partition('=')[0]} ")
    assert "one strength, found 2" in refused("--lambda=0,1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("")
    assert main(["--lambda=0.5", f"--out={tmp_path / 'out'}"]) == 2
    assert "already holds a model" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--lambda=0.5", f"--out={tmp_path / 'file'}"]) == 2
    assert "expected a folder, found a file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected weights in full precision, found int8"):
        combine(load_policies(toy, toy, quantize="int8"), (0.5,))


def test_architectures_are_compared_before_weights_are_read(tmp_path, toy, capsys, monkeypatch):
    other = shutil.copytree(toy, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    monkeypatch.setattr("dera_jax.policies.weights.read_params", None)
    words = [f"--reference={toy}", f"--aligned={other}", "--lambda=0.5", f"--out={tmp_path / 'out'}"]
    assert main(words) == 2
    assert f"expected one architecture, found {toy} and {other} to differ" in capsys.readouterr().err
