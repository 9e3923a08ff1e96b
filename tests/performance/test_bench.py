"""The bench: its torch opponent computes the same mixture, and its report has what it promises."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from dera_jax.commands.bench import main
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.request import Request
from dera_jax.performance.bench import decoding, sides, timing
from dera_jax.policies.save import save_policy
from dera_jax.realign import mix_logits
from tests.support.tiny import TINY

STEPS = 16


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    return sides.without_eos(sides.random_policies(tmp_path_factory.mktemp("random"), TINY))


@pytest.fixture(scope="module")
def torch_pair(policies, tmp_path_factory):
    baseline = pytest.importorskip("dera_jax.performance.bench.torch_decoding")
    folder = tmp_path_factory.mktemp("saved")
    for policy, name in zip(policies, ("reference", "aligned"), strict=True):
        save_policy(policy, folder / name)
    return baseline.TorchPair(folder / "reference", folder / "aligned")


def random_prompts(lengths):
    generator = np.random.default_rng(5)
    ids = [tuple(generator.integers(1, TINY["vocab_size"], size=n).tolist()) for n in lengths]
    return [EncodedPrompt(Prompt(n, "words"), (i, i)) for n, i in enumerate(ids)]


def padded(prompts):
    length = max(len(p.tokens[0]) for p in prompts)
    tokens, mask = np.zeros((2, len(prompts), length), int)
    for row, prompt in enumerate(prompts):
        ids = prompt.tokens[0]
        tokens[row, length - len(ids) :], mask[row, length - len(ids) :] = ids, 1
    return tokens, mask


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0, 1.8, -0.5])
def test_greedy_tokens_equal_those_of_torch(policies, torch_pair, lambda_):
    prompts = random_prompts((16, 3, 9))
    ours = sides.complete_all(
        policies, [Request(p, 0, (lambda_,)) for p in prompts], 3, STEPS, temperature=0.0
    )
    tokens, mask = padded(prompts)
    theirs = torch_pair.generate(tokens, lambda_, STEPS, mask=mask, greedy=True)
    assert ours == theirs.tolist()
    # Not all the same word, and another strength gives other words: the comparison has something to find.
    assert len(np.unique(theirs)) > 3
    assert theirs.tolist() != torch_pair.generate(tokens, lambda_ + 1, STEPS, mask=mask, greedy=True).tolist()


def test_padding_changes_nothing_on_torch(torch_pair):
    prompts = random_prompts((16, 3, 9))
    tokens, mask = padded(prompts)
    together = torch_pair.generate(tokens, 0.7, STEPS, mask=mask, greedy=True)
    alone = [torch_pair.generate(np.array([p.tokens[0]]), 0.7, STEPS, greedy=True)[0] for p in prompts]
    assert np.array_equal(together, alone)


def test_the_processor_feeds_the_reference_one_token_at_a_time(torch_pair):
    lengths = []
    hook = torch_pair._reference.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    tokens, mask = padded(random_prompts((16, 3)))
    made = torch_pair.generate(tokens, 0.7, STEPS, mask=mask, samples=2)
    hook.remove()
    assert made.shape == (4, STEPS)
    assert lengths == [(4, 16)] + [(4, 1)] * (STEPS - 1)


def test_torch_draws_from_the_whole_mixture(policies, torch_pair):
    """First tokens drawn by torch have the frequencies of our softmax(0.7 h_aligned + 0.3 h_ref)."""
    pytest.importorskip("torch").manual_seed(0)
    (prompt,), draws = random_prompts((16,)), 4096
    ids, mask = jnp.array(prompt.tokens[:1]), jnp.ones((1, 16), bool)
    logits = [models.bind(p.config, p.params).forward(ids, mask)[0, -1] for p in policies]
    drawn = torch_pair.generate(np.array(prompt.tokens[:1]), 0.7, 1, samples=draws)[:, 0]
    counts = np.bincount(drawn, minlength=TINY["vocab_size"])

    def chi_squared(lambda_):
        expected = draws * jax.nn.softmax(mix_logits(jnp.stack(logits), jnp.array([1 - lambda_, lambda_])))
        return float(((counts - expected) ** 2 / expected).sum())

    # Mean 96 and deviation √(2 · 96) for 97 words; at the default top_k of 50, words would be missing.
    assert chi_squared(0.7) < 96 + 5 * math.sqrt(2 * 96)
    assert min(chi_squared(0.5), chi_squared(1.0)) > 300


def test_functions_take_turns_and_ratios_are_within_a_turn(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    calls = []

    def fake(name, seconds):
        values = iter(seconds)
        return lambda: calls.append(name) or next(values)

    seconds = timing.interleave({"a": fake("a", [9, 2, 4, 6]), "b": fake("b", [8, 1, 1, 2])}, 3)
    assert calls == list("abababab")
    assert seconds["a"] == {"first": 9, "median": 4, "min": 2, "max": 6, "values": [2, 4, 6]}
    assert timing.ratio(seconds["a"], seconds["b"])["values"] == [2, 4, 3]


def test_short_calls_are_repeated_within_their_turn():
    values = iter([5.0, 0.2, 0.1, 0.4])
    assert timing.interleave({"a": lambda: next(values)}, 2)["a"]["values"] == [pytest.approx(0.15), 0.4]


@pytest.fixture
def report(policies, tmp_path, monkeypatch, capsys):
    """Runs the command on the tiny pair without torch."""
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(decoding, "SWEEP_ROWS", 8)
    for policy, name in zip(policies, ("reference", "aligned"), strict=True):
        save_policy(policy, tmp_path / name)
    (tmp_path / "prompts.txt").write_text("w1 w2 w3\nw4 w5\n")
    argv = (
        f"--reference={tmp_path}/reference --aligned={tmp_path}/aligned --shape=none --rows=1,2 --repeats=2"
    )
    argv += f" --new-tokens=16 --prompts={tmp_path}/prompts.txt --no-torch --out={tmp_path}/out.json"
    assert main(argv.split()) == 0
    printed = capsys.readouterr()
    return json.loads((tmp_path / "out.json").read_text()), printed


@pytest.mark.slow
def test_report(report):
    report, printed = report
    assert (
        report["models"][0]["parameters"]
        == 2 * 97 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 64) + 32
    )
    told = {"new_tokens": 16, "repeats": 2, "num_samples": 1, "stop": []}
    assert report["settings"] == {**told, "lambda": 0.7, "prompt_tokens": 16}
    assert report["versions"]["torch"] is None and report["cpu_count"] >= 1 and report["device"]
    assert [result["rows"] for result in report["decode"]] == [1, 2]
    for result in report["decode"]:
        assert result["seconds"].keys() == {"single", "mixed"} and "times_torch" not in result
        speeds, times = result["tokens_per_second"]["mixed"], result["seconds"]["mixed"]
        assert speeds["values"] == [pytest.approx(16 * result["rows"] / s) for s in times["values"]]
        assert len(times["values"]) == 2 and times["min"] <= times["median"] <= times["max"]
    for result in report["overhead"]:
        assert result["seconds"].keys() == {"whole", "forwards"} and result["target"] == 1.1
        assert len(result["whole_to_forwards"]["values"]) == 2
    (sweep,) = report["sweep"]
    assert (len(sweep["strengths"]), sweep["prompts"], sweep["samples"]) == (11, 2, 4)
    assert printed.out.count("overhead ") == 2 and "repeat 2 of 2" in printed.err


def test_bare_scan_runs_every_word_of_both_models(policies):
    """Raising any word's logit in either model changes the bare scan's tokens: nothing can be left out."""
    configs, params = tuple(p.config for p in policies), tuple(p.params for p in policies)
    prompt = sides.make_prompt(policies, STEPS)

    def tokens(params):
        state = decoding._filled(configs, params, prompt.tokens[0], 1, STEPS)
        return decoding.forward_chunk(configs, params, state, steps=STEPS)[1].tolist()

    for model in range(2):
        kernel = params[model]["head"]["kernel"]
        for word in (0, 96):
            changed = list(params)
            raised = kernel.at[:, word].multiply(1e6)
            changed[model] = params[model] | {"head": {"kernel": raised}}
            assert tokens(changed) != tokens(params)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sections=decode,speed", "--sections: expected some of decode, overhead, sweep, got 'speed'"),
        ("--rows=1,0", "--rows: expected whole numbers from 1 to 999999, commas between, got '1,0'"),
        ("--new-tokens=20", "new_tokens: expected a multiple of 16, got 20"),
        ("--repeats=0", "repeats: expected a whole number, at least 1, got 0"),
        ("--new-tokens=128", "16 prompt tokens and 128 new ones do not fit its context of 128 tokens"),
    ],
)
def test_bad_arguments(policies, tmp_path, capsys, argument, message):
    save_policy(policies[0], tmp_path / "model")
    pair = [f"--reference={tmp_path}/model", f"--aligned={tmp_path}/model", "--shape=none", "--no-torch"]
    assert main([*pair, argument]) == 2
    assert message in capsys.readouterr().err
