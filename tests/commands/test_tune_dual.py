"""eval.tune --dual: from rows at λ = 0 to a strength."""

import json

import numpy as np
import pytest

from dera_jax import sweep
from dera_jax.analysis.dual import solve
from dera_jax.commands import tune


@pytest.fixture(scope="module")
def reference_run(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    texts = ["Once upon a time", "Tom has a dog.", "One day"]
    list(sweep(pair, texts, "0", "length:4:12", out=out, num_samples=8, max_new_tokens=16))
    return out


def test_the_law_at_the_strength_has_the_mean_that_is_asked_for(call, reference_run, tmp_path):
    rows = [json.loads(line) for line in (reference_run / "rows.jsonl").read_text().splitlines()]
    values = np.array([row["rewards"]["length:4:12"] for row in rows])
    prompts = np.array([row["prompt_id"] for row in rows])
    each = [values[prompts == prompt] for prompt in sorted(set(prompts))]
    plain, most = np.mean([v.mean() for v in each]), np.mean([v.max() for v in each])
    assert plain < most
    bound, out = round((plain + most) / 2, 3), tmp_path / "dual.json"
    words = (reference_run, "--dual", "--beta=0.1", f"--constraint=length:4:12>={bound}", f"--out={out}")
    code, told, err = call(tune.main, *words)
    assert code == 0, err
    found = json.loads(out.read_text())
    weights = [np.exp(found["mu"] * v / 0.1) for v in each]
    mean = np.mean([(w * v).sum() / w.sum() for w, v in zip(weights, each, strict=True)])
    assert mean == pytest.approx(bound, abs=1e-6)
    assert found["mu"] == solve(rows, "length:4:12", bound, 0.1).mu
    assert f"λ = μ = {found['mu']:.4g}" in told and "at its optimum" in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "expected one --constraint='NAME>=NUMBER', found none"),
        (("--constraint=length:4:12<=0",), "--dual takes REWARD>=NUMBER"),
        (("--constraint=kl>=1",), "--dual takes REWARD>=NUMBER"),
        (("--constraint=length:4:12>=-0.1", "--beta=-1"), "--beta: expected a number above 0"),
        (("--constraint=length:4:12>=-0.1",), "expected --beta"),
        (("--constraint=length:4:12>=-0.1", "--beta=1", "--objective=slots"), "eval.score adds it"),
        (("--constraint=length:4:12>=-0.1", "--beta=1", "--objective=kl"), "expected a reward with --dual"),
        (("--constraint=length:4:12>=2", "--beta=1"), "expected less than"),
        (("--constraint=length:4:12>=-0.1", "--kl-price=1"), "--kl-price has no meaning with --dual"),
    ],
)
def test_what_it_refuses(refused, reference_run, words, why):
    assert why in refused(tune.main, reference_run, "--dual", *words)
