"""What a result depends on is told apart: ends, tokenizers, templates, code, reward models, lexicons."""

import functools
import importlib
import json
import shutil
import sys

import pytest

from dera_jax import load_policies, read_rows, sweep
from dera_jax.commands import score
from dera_jax.commands import sweep as sweep_command
from dera_jax.common.code_hash import code_hash
from dera_jax.policies.policy import TOY
from dera_jax.results.manifests import read_manifest
from dera_jax.rewards.registry import parse_rewards

TEXTS = ["the cat sat", "a dog ran"]
SETTINGS = {"max_new_tokens": 8, "rows": 4}


@pytest.fixture
def folders(tmp_path):
    for name in ("reference", "aligned"):
        shutil.copytree(TOY / name, tmp_path / name)
    return tmp_path


def run(folders, samples=1, out="run", **more):
    policies = load_policies(folders / "reference", folders / "aligned")
    return list(
        sweep(policies, TEXTS, [0.0, 1.0], out=folders / out, num_samples=samples, **SETTINGS, **more)
    )


def change(path, **values):
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


@pytest.mark.parametrize("name", ["eos", "decoder", "template"])
def test_what_decides_where_texts_end_and_how_they_read_is_the_folders_own(folders, name):
    before = run(folders)
    if name == "eos":
        change(folders / "aligned" / "generation_config.json", eos_token_id=[2, 7])
    elif name == "decoder":
        change(folders / "aligned" / "tokenizer.json", decoder={"type": "Fuse"})
    else:
        (folders / "reference" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ValueError, match=r"eos|tokenizers") as refused:
        run(folders, 2)
    assert "choose another --out" in str(refused.value)
    assert read_rows(folders / "run") == before


def test_folders_that_do_not_tell_it_yet_go_on_and_tell_it_then(folders):
    run(folders)
    path = folders / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    told = {name: manifest["identity"].pop(name) for name in ("eos", "tokenizers")}
    path.write_text(json.dumps(manifest))
    run(folders)  # nothing is missing, nothing is written
    assert "eos" not in read_manifest(folders / "run")["identity"]
    assert len(run(folders, 2)) == 8
    assert {name: read_manifest(folders / "run")["identity"][name] for name in told} == told


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's and imports it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        return importlib.import_module("mine")

    yield write
    sys.modules.pop("mine", None)


CODE = """
import math
WORDS = ["cat", "dog"]

def count(text):
    return sum(word in text for word in WORDS)

def other():
    return 1

def f(completions, **_):
    return [float(count(text)) for text in completions]

class Object:
    def __call__(self, completions, **_):
        return [float(count(text)) for text in completions]
"""


@pytest.mark.parametrize("attribute", ["f", "Object"])
def test_a_function_is_what_it_and_what_it_names_in_its_file_say(module, attribute):
    def hashed(text):
        found = getattr(module(text), attribute)
        return code_hash(found() if isinstance(found, type) else found)

    before = hashed(CODE)
    assert before and hashed(CODE.replace("def other", "# a comment\n\n\ndef other")) == before
    assert hashed(CODE.replace("return 1", "return 2")) == before, "is not used"
    changed = [
        CODE.replace('"dog"', '"bird"'),
        CODE.replace("sum(word in text", "sum(2 * (word in text)"),
        CODE.replace("float(count(text))", "-float(count(text))"),
    ]
    assert len({before, *map(hashed, changed)}) == 4


def test_wrapped_functions_and_those_without_source(module):
    f = module(CODE).f
    partial = functools.partial(f, scale=2)
    assert code_hash(partial) not in (None, code_hash(f))
    assert code_hash(partial) != code_hash(functools.partial(f, scale=3))
    assert code_hash(functools.wraps(f)(lambda *a, **k: f(*a, **k))) == code_hash(f)
    assert code_hash(len) is None


def test_a_rule_with_other_code_is_another_run(folders, module):
    text = "def f(logits, weights, state): return logits[0], state\n"
    run(folders, rule=module(text).f)
    run(folders, 2, rule=module(f"# told\n{text}").f)
    with pytest.raises(ValueError, match="rule_code"):
        run(folders, 3, rule=module(text.replace("logits[0]", "0.5 * logits[1]")).f)


REWARD = "def f(completions, **_): return [float(len(text)) for text in completions]\n"


def test_a_reward_whose_code_has_changed_judges_what_is_there_again(folders, module):
    rewards = {"mine": module(REWARD).f}
    run(folders, rewards=rewards)
    shorter = {"mine": module(REWARD.replace("float(", "-float(")).f}
    with pytest.warns(UserWarning, match="mine has changed: the 4 rows there are judged again"):
        rows = run(folders, 2, rewards=shorter)
    assert len(rows) == 8
    assert all(row["rewards"]["mine"] == -len(row["completion"]) for row in read_rows(folders / "run"))
    before = (folders / "run" / "rows.jsonl").read_bytes()
    run(folders, 2, rewards=shorter)
    assert (folders / "run" / "rows.jsonl").read_bytes() == before


def test_rows_that_cannot_be_judged_again_are_left_as_they_are(folders, module):
    run(folders, rewards={"mine": module(REWARD).f})
    before = (folders / "run" / "rows.jsonl").read_bytes()
    policies = load_policies(folders / "reference", folders / "aligned")
    again = {"mine": module(REWARD.replace("float(", "-float(")).f}
    with pytest.raises(
        ValueError, match=r"mine has changed.*2 of them of prompts that are not asked for.*NAME="
    ):
        list(sweep(policies, TEXTS[:1], [0.0, 1.0], again, out=folders / "run", **SETTINGS))
    assert (folders / "run" / "rows.jsonl").read_bytes() == before


def test_a_lexicon_that_has_changed_judges_again_by_command(folders, capsys):
    lexicon, out = folders / "words.txt", folders / "run"
    lexicon.write_text("the\t1.0\n")
    words = ["--num-prompts=2", "--max-new-tokens=8", "--lambda=0,1", f"--out={out}"]
    reward = f"--reward=lexicon:{lexicon}"
    assert sweep_command.main([*words, reward]) == 0
    assert "has changed" not in capsys.readouterr().err
    lexicon.write_text("the\t-3.0\n")
    assert score.main([str(out), reward]) == 0
    assert "warning: reward lexicon:" in capsys.readouterr().err
    expected = parse_rewards(f"lexicon:{lexicon}")[0]
    hashes = read_manifest(out)["reward_hashes"]
    assert hashes == {expected.name: expected.fingerprint}
    assert {row["rewards"][expected.name] for row in read_rows(out)} <= {0.0, -3.0}


def test_versions_of_what_computes_are_on_record(folders):
    run(folders)
    versions = read_manifest(folders / "run")["provenance"]["versions"]
    assert {"jax", "transformers", "tokenizers", "numpy"} <= versions.keys() and all(versions.values())
