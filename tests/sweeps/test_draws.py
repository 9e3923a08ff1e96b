"""What makes a run's completions is the caller's to choose, and is part of what the run is."""

from dataclasses import replace

import pytest

from dera_jax import generate, load_policies, read_rows, sweep
from dera_jax.decoding.complete import complete, draw_name
from dera_jax.results.manifests import read_manifest

TEXTS = ["Mira visits Ida.", "Tom"]
SETTINGS = {"max_new_tokens": 24, "rows": 4, "num_samples": 2}


def second(policies, requests, config, rows, rule, usage):
    """What each request's next attempt gives."""
    asked = {replace(request, attempt=1).key: request for request in requests}
    attempts = [replace(request, attempt=1) for request in requests]
    for done in complete(policies, attempts, config, rows, rule, usage):
        yield replace(done, request=asked[done.request.key])


@pytest.fixture(scope="module")
def policies():
    return load_policies()


def texts(rows):
    return {(row["prompt_id"], row["sample"], row["lambda"]): row["completion"] for row in rows}


def test_a_run_is_of_one_draw_and_says_which(policies, tmp_path):
    plain = list(sweep(policies, TEXTS, [0, 1], out=tmp_path / "plain", **SETTINGS))
    other = list(sweep(policies, TEXTS, [0, 1], out=tmp_path / "other", draw=second, **SETTINGS))
    name = f"{__name__}:second"
    assert {row["draw"] for row in other} == {name} == {draw_name(second)}
    assert read_manifest(tmp_path / "other")["identity"]["draw"] == name
    assert all("draw" not in row for row in plain)
    assert "draw" not in read_manifest(tmp_path / "plain")["identity"]
    assert texts(plain).keys() == texts(other).keys() and texts(plain) != texts(other)
    assert texts(read_rows(tmp_path / "other")) == texts(other)
    with pytest.raises(ValueError, match="draw"):
        list(sweep(policies, TEXTS, [0, 1, 2], out=tmp_path / "other", **SETTINGS))
    with pytest.raises(ValueError, match="draw"):
        list(sweep(policies, TEXTS, [0, 1, 2], out=tmp_path / "plain", draw=second, **SETTINGS))
    more = list(sweep(policies, TEXTS, [0, 1, 2], out=tmp_path / "other", draw=second, **SETTINGS))
    assert len(more) == 12 and texts(other).items() <= texts(more).items()


def test_single_calls_take_it_too(policies):
    asked = dict(max_new_tokens=24, num_samples=2)
    drawn = [
        [done.tokens for done in generate(policies, TEXTS, draw=draw, **asked)] for draw in (complete, second)
    ]
    assert drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 4
