"""A session opens the mesh, each model and the data once, in whatever order they are asked for."""

import json

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.data.examples import encode_examples
from dera_jax.models.trees import flatten
from dera_jax.policies import load
from dera_jax.policies.policy import TOY
from dera_jax.training import parameters, session
from dera_jax.training.session import Adapters, Session

START, OTHER = str(TOY / "reference"), str(TOY / "aligned")


@pytest.fixture
def opened(monkeypatch):
    """Names of what is opened, as it is."""
    names = []

    def load_policy(name, *args, whole=load.load_policy, **more):
        names.append(name)
        return whole(name, *args, **more)

    def open_mesh(text, held, whole=session.open_mesh):
        names.append("mesh")
        return whole(text, held)

    monkeypatch.setattr(load, "load_policy", load_policy)
    monkeypatch.setattr(session, "open_mesh", open_mesh)
    return names


@pytest.mark.parametrize("first", ["policy", "reference"])
def test_models_and_mesh_are_opened_once_in_any_order(opened, first):
    here = Session(START, reference_model=OTHER, adapters=Adapters(2, 4.0))
    assert opened == []
    if first == "reference":
        assert here.reference.name == OTHER
    policies = [here.policy(seed) for seed in (0, 1)]
    assert here.reference is here.reference and here.reference.name == OTHER
    assert sorted(opened) == sorted(["mesh", START, OTHER])
    assert all(policy.config.adapters for policy in policies) and not here.start.config.adapters
    one, other = (flatten(parameters.split(policy.params)[0]) for policy in policies)
    assert any((np.asarray(one[name]) != np.asarray(other[name])).any() for name in one)


@pytest.mark.parametrize("named", [None, START])
def test_the_reference_is_the_start_unless_another_is_named(opened, named):
    here = Session(START, reference_model=named)
    assert here.reference is here.start
    assert here.policy(0).params is here.reference.params
    assert opened.count(START) == 1


def test_a_policy_from_scratch_reads_no_weights(opened):
    here = Session(START, from_scratch=True, chat_template="{{ messages }}")
    assert [here.policy(seed).fingerprint for seed in (3, 4)] == ["random-3", "random-4"]
    assert here.policy(3).tokenizer.chat_template == "{{ messages }}"
    assert opened == []


def test_settings_tell_how_it_started():
    here = Session(START, adapters=Adapters(2, 4.0, "q_proj,v_proj"), chat_template="t")
    told = here.settings("sft", here.policy(0))
    assert told["method"] == "sft" and told["start"]["model"] == START and told["dtype"] == "float32"
    assert told["lora"] == {"r": 2, "alpha": 4.0, "targets": "q_proj,v_proj"}
    assert len(told["chat_template"]) == 16
    assert not {"lora", "chat_template"} & Session(START).settings("sft", here.start).keys()


def test_data_are_read_once_and_told_once(tmp_path):
    path, lines, encoded = tmp_path / "texts.jsonl", [], []
    path.write_text(
        "".join(json.dumps({"prompt": f"{n} is", "completion": " more"}) + "\n" for n in range(30))
    )
    here = Session(START, tell=lines.append)

    def encode(records):
        encoded.append(records)
        return encode_examples(here.start, records, 32)

    data = here.data(str(path), encode, eval_share=0.3)
    assert here.data(str(path), encode, eval_share=0.3) is data and len(encoded) == 1
    assert len(data.items) + len(data.held_out) == 30 and data.held_out
    assert data.prompts == [item.prompt for item in data.held_out]
    assert data.settings["examples"] == len(data.items)
    assert lines[1:] == [f"{len(data.items)} to train, {len(data.held_out)} held out"]
    of_another = here.data(str(path), encode, eval_data=str(path))
    assert len(of_another.items) == len(of_another.held_out) == 30


@pytest.mark.parametrize("adapters", [None, Adapters(2, 4.0)])
def test_what_is_saved_is_what_was_trained(tmp_path, adapters):
    here = Session(START, adapters=adapters)
    policy = here.policy(0)
    trained, _ = parameters.split(policy.params)
    here.save(policy)(trained, tmp_path / "out", {"method": "sft"})
    assert (tmp_path / "out" / "adapter_config.json").exists() == (adapters is not None)
    name = str(tmp_path / "out")
    there = load_policy(f"{START}+{name}" if adapters else name)
    ours, theirs = flatten(policy.params), flatten(there.params)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
