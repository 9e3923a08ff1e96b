"""Declared experiments: which commands, of what, at which β."""

from dataclasses import replace

import pytest

from dera_jax.experiments.declare import Experiment, Place, Step

DATA = Step("tests.nothing:data", "data", {"words": 8})
SFT = Step("train.sft", "models/sft", {"model": "base", "data": DATA / "train.jsonl"})
EXPERIMENT = Experiment(
    name="length",
    title="a length",
    reference=SFT,
    training=Step(
        "train.rlhf", "", {"model": SFT, "data": DATA / "prompts.jsonl", "stop": r"\n", "dry": False}
    ),
    beta=0.1,
    strengths=(0.0, 0.5, 1.0, 2.0),
    retrained=(0.5, 1.0, 2.0),
    repeated=(0.5, 1.0),
    num_seeds=2,
    combined=(2.0,),
    decoding={"prompts": DATA / "held_out.jsonl", "reward": ("length:1:2", Place(SFT, "best", "model:"))},
)


def test_words_are_a_command_line():
    assert EXPERIMENT.aligned(0.5, 1).words("runs") == [
        "train.rlhf",
        "--model=runs/models/sft",
        "--data=runs/data/prompts.jsonl",
        r"--stop=\n",
        "--beta=0.2",
        "--seed=1",
        "--out=runs/length/beta=0.2-seed=1",
    ]
    words = EXPERIMENT.dera().words("runs")
    assert "--lambda=0,0.5,1,2" in words and "--reward=length:1:2,model:runs/models/sft/best" in words
    assert Step("train.sft", "a", {"from_scratch": True}).words("w") == [
        "train.sft",
        "--from-scratch",
        "--out=w/a",
    ]


def test_needs_follow_options_however_deep():
    sweep = EXPERIMENT.retrained_sweep(2.0)
    assert {step.folder for step in sweep.needs()} == {"models/sft", "length/beta=0.05-seed=0", "data"}
    assert EXPERIMENT.aligned().needs() == [SFT, DATA]


def test_a_retrained_model_stands_for_its_strength():
    for strength, seed in EXPERIMENT.trials():
        trained = EXPERIMENT.aligned(strength, seed)
        assert float(trained.options["beta"]) == pytest.approx(0.1 / strength)
        sweep = EXPERIMENT.retrained_sweep(strength, seed)
        assert sweep.options["aligned"] == trained and sweep.options["lambda_"] == ("1",)


def test_every_seed_is_decoded_and_nothing_twice():
    assert list(EXPERIMENT.trials()) == [(0.5, 0), (0.5, 1), (2.0, 0)]  # at 1 the aligned models themselves
    folders = [step.folder for step in EXPERIMENT.sweeps()]
    assert len(folders) == len(set(folders)) == 6
    # λ = 0 is the reference, whatever was trained.
    assert EXPERIMENT.dera(1).options["lambda_"] == ("0.5", "1")
    with_pairs = replace(EXPERIMENT, pairs=DATA / "pairs.jsonl").measurements()
    assert [s.folder for s in with_pairs if s.command == "eval.score"] == [
        "length/pairs-dera.json", "length/pairs-retrained-0.5.json", "length/pairs-retrained-2.json",
    ]  # fmt: skip


def test_a_model_that_is_there_is_not_trained():
    ready = replace(EXPERIMENT, aligned_model="org/aligned")
    assert ready.dera().options["aligned"] == "org/aligned"
    assert isinstance(ready.aligned(0.5), Step)


def test_an_adapter_comes_with_what_it_adapts():
    lora = replace(EXPERIMENT, training=replace(EXPERIMENT.training, options={"model": SFT, "lora_r": 16}))
    sweep = lora.retrained_sweep(0.5)
    assert "--aligned=runs/models/sft+runs/length/beta=0.2-seed=0" in sweep.words("runs")
    assert {"models/sft", "length/beta=0.2-seed=0"} <= {step.folder for step in sweep.needs()}


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"repeated": (0.5,)}, "expected 1 among"),
        ({"repeated": (1.0, 0.25)}, "not retrained"),
        ({"retrained": (0.0, 0.5)}, "no β/λ"),
    ],
)
def test_what_cannot_be_made_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        replace(EXPERIMENT, **wrong)
