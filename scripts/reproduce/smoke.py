"""The same experiments at toy size: every command runs, nothing is learned."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dera_jax.common.files import write_text
from dera_jax.common.json_files import read_json, write_json
from dera_jax.experiments import presets
from dera_jax.experiments.declare import Experiment, Outside, Place, Source, Step
from scripts.reproduce.settings import LINE

TRAINING = {
    "max_steps": 2,
    "num_train_epochs": None,
    "batch_size": 8,
    "num_samples": 2,
    "num_ppo_epochs": 1,
    "num_mini_batches": 1,
    "value_warmup_steps": 1,
    "max_length": 96,
}
SWEEP = {"num_prompts": 12, "num_samples": 2, "max_new_tokens": 24}
OFTEN = "e"
"""Ends texts of a model that has learned nothing, and seldom writes a line break."""
HERE = "scripts.reproduce"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Of the chat that a model without one leads."""
LAYERS = ("num_layers", "num_decoder_layers", "num_hidden_layers")
"""What configurations call their number."""


def shrink(experiment: Experiment) -> Experiment:
    """Returns an experiment with a few steps, prompts and strengths."""
    retrained = tuple(s for s in experiment.retrained if s in (0.5, 2.0))
    return replace(
        experiment,
        reference=shrink_step(experiment.reference),
        training=shrink_step(experiment.training),
        strengths=tuple(s for s in experiment.strengths if s in (0.0, 0.5, 1.0, 2.0)),
        retrained=retrained,
        repeated=tuple(s for s in experiment.repeated if s in (1.0, *retrained)),
        num_seeds=min(experiment.num_seeds, 2),
        combined=tuple(s for s in experiment.combined if s == 2.0),
        pairs=shrink_step(experiment.pairs),
        decoding={name: shrink_step(value) for name, value in (experiment.decoding | SWEEP).items()},
    )


def shrink_step(value: Any) -> Any:
    """Returns a step, or an option's value that may hold some, with toy sizes."""
    if isinstance(value, (tuple, list)):
        return tuple(map(shrink_step, value))
    if isinstance(value, Place):
        return replace(value, step=shrink_step(value.step), base=shrink_step(value.base))
    if value == LINE:
        return OFTEN
    if not isinstance(value, Step):
        return value
    sizes = {"train": TRAINING, "eval": SWEEP}.get(value.command.partition(".")[0], {})
    options = {name: sizes.get(name, shrink_step(each)) for name, each in value.options.items()}
    if value.command.startswith("train."):
        options["max_steps"] = TRAINING["max_steps"]
    if value.command == "eval.sweep":
        options |= SWEEP
    return replace(value, options=options)


def shrink_preset(experiment: Experiment) -> Experiment:
    """Returns an experiment of the paper's size at toy size, with what is here for what is on the hub."""
    small = shrink(exchange(experiment, stand_ins()))
    training = replace(small.training, options={**small.training.options, "max_steps": 1})
    return replace(
        small,
        training=training,
        strengths=tuple(s for s in small.strengths if s in (0.0, 1.0, *small.retrained[:1])),
        retrained=small.retrained[:1],
        # As many rows at a time in every sweep: what one has compiled serves the others.
        decoding={**small.decoding, "num_prompts": 4, "num_samples": 1, "max_new_tokens": 16, "rows": 4},
    )


def exchange(value: Any, known: Mapping[str, Source]) -> Any:
    """Returns an experiment, a step or an option's value with other models and data for those `known`."""
    if isinstance(value, Experiment):
        names = ("reference", "training", "pairs", "decoding", "aligned_model")
        return replace(value, **{name: exchange(getattr(value, name), known) for name in names})
    if isinstance(value, Mapping):
        return {name: exchange(each, known) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(exchange(each, known) for each in value)
    if isinstance(value, Place):
        return replace(value, step=exchange(value.step, known), base=exchange(value.base, known))
    if isinstance(value, Step):
        return replace(value, options=exchange(value.options, known))
    if isinstance(value, Outside):
        return known.get(value.name, value)
    return known.get(value, value) if isinstance(value, str) else value


def stand_ins() -> dict[str, Source]:
    """Returns what is here for each model and data set of the presets, with the same fields."""
    texts = Step(
        f"{HERE}.data:e2e",
        "stand-ins/e2e",
        {"data": Outside("e2e"), "held_out": 32, "vocabulary": 512, "longest": 64},
    )
    stories = Outside("stories260K")

    def model(name: str, source: Source, seed: int = 0, dtype: str = "float32") -> Step:
        options = {"model": source, "seed": seed, "dtype": dtype}
        return Step(f"{HERE}.smoke:untrained", f"stand-ins/{name}", options)

    t5 = model("t5", texts / "model")
    chats = Step(f"{HERE}.smoke:chats", "stand-ins/chats", {"data": texts / "train.jsonl"})

    def few(name: str, part: str, **templates: str) -> Place:
        options = {"data": texts / f"{part}.jsonl", "first": 32, **templates}
        return Step("dera_jax.data.recast:recast", f"stand-ins/{name}", options) / "data.jsonl"

    pair = {"prompt": "{prompt}", "rejected": "{prompt}"}
    return {
        presets.T5_SMALL: t5,
        presets.T5_LARGE: t5,
        presets.ZEPHYR_SFT: model("chat-sft", stories, 0, "bfloat16"),
        presets.ZEPHYR: model("chat", stories, 1, "bfloat16"),
        presets.ULTRAFEEDBACK: chats / "data.jsonl",
        f"{presets.XSUM}:train": few("xsum", "train", document="{prompt}", summary="{completion}"),
        f"{presets.XSUM}:test": few(
            "xsum-test", "held_out", document="{prompt}", summary="{references[0]}", id="{id}"
        ),
        f"{presets.TLDR}:train": few("tldr", "train", prompt="{prompt}", completion="{completion}"),
        f"{presets.TLDR}:test": few("tldr-test", "held_out", prompt="{prompt}"),
        f"{presets.TLDR_PAIRS}:train": few("pairs", "train", chosen="{completion}", **pair),
        f"{presets.TLDR_PAIRS}:validation": few("pairs-test", "held_out", chosen="{references[0]}", **pair),
    }


def untrained(out: Path, model: str, seed: str, dtype: str) -> None:
    """Writes one layer of another model's kind with random weights, its tokenizer, and a chat template."""
    from dera_jax.policies.load import fresh_policy
    from dera_jax.policies.save import save_policy

    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = read_json(out / "config.json")
    write_json(out / "config.json", config | {name: 1 for name in LAYERS if name in config})
    write_text(out / "chat_template.jinja", TEMPLATE)
    save_policy(fresh_policy(str(out), int(seed), dtype), out)


def chats(out: Path, data: str) -> None:
    """Writes pairs as UltraFeedback has them: lists of messages, scores, and the prompt once more."""
    from dera_jax.data.records import load_records
    from scripts.reproduce.data import write_rows

    def said(prompt: str, answer: str) -> list[dict]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    rows = []
    for record in load_records(data, 16):
        prompt, answer = record.fields["prompt"][:40], record.fields["completion"]
        pair = {"chosen": said(prompt, answer), "rejected": said(prompt, answer[:20])}
        rows.append({"prompt": prompt, **pair, "score_chosen": 8.5, "score_rejected": 4.0})
    write_rows(out / "data.jsonl", rows)
