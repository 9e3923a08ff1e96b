"""From a chosen strength to a training: β* = β/λ*, where it is written, the commands, the cost.

The mixture at λ stands for the model trained at β/λ (Eq. 3–5); of several aligned models, model i stands in
it for one trained at β_i/λ_i. What can be known of a model is in the manifest that our training leaves.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dera_jax.analysis.tuning.beta import TRAINERS, written
from dera_jax.common.differences import ABSENT, differences
from dera_jax.common.json_files import read_json
from dera_jax.common.shown import shown
from dera_jax.common.spelling import respelled, spelled
from dera_jax.results.manifests import TrainingManifest


def model_manifest(model: str) -> dict | None:
    """Returns the manifest in the folder of a MODEL, of its adapter if it has one; None if there is none."""
    # Unlike pathlib's, these two say no to names that cannot be, too long ones say.
    folder = Path(model if os.path.isdir(model) else model.rpartition("+")[2])
    path = folder / "manifest.json"
    if not os.path.isfile(path):
        return None
    return read_json(path, TrainingManifest)


def replaced(words: Sequence[str], options: Mapping[str, str | None]) -> list[str]:
    """Returns the words of a command with options set to other values, or, at None, left out.

    >>> replaced(["--beta", "0.1", "--max_steps=2", "--out=a"], {"beta": "0.05", "out": "b"})
    ['--max_steps=2', '--beta=0.05', '--out=b']
    """
    kept: list[str] = []
    dropping = False
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("--"):
            dropping = name[2:].replace("_", "-") in options
            if not dropping:
                kept.append(word)
            dropping = dropping and not equals
        elif dropping:
            dropping = False  # the value of an option written without =
        else:
            kept.append(word)
    return [*kept, *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def training_words(manifest: Mapping, where: str, beta: float, out: Path) -> tuple[str, list[str]]:
    """Returns the module and the words that train as a model was trained, at another β.

    Args:
      manifest: of the model.
      where: it comes from, for errors.

    Raises:
      ValueError: it was not made by one of our commands.
    """
    command = (manifest.get("provenance") or {}).get("command") or []
    module, words = _module(command)
    if module not in TRAINERS:
        made = shown(" ".join(command[:3]), 200) or "no command that it tells"
        raise ValueError(
            f"--retrain: {shown(where, 200)} was made by {made}; "
            f"expected {' or '.join(map(respelled, TRAINERS))}"
        )
    config = manifest.get("train_config") or {}
    options = {"beta": written(beta), "seed": str(config.get("seed", 0)), "out": str(out)}
    # Its default was another one once: what the model was trained at is said.
    rate = config.get("learning_rate")
    if rate is not None and not any(word.replace("_", "-").startswith("--learning-rate") for word in words):
        options["learning-rate"] = f"{rate:g}"
    return module, replaced(words, options)


def _module(command: Sequence[str]) -> tuple[str, list[str]]:
    """Returns what follows `python -m`, and the words after that."""
    if list(command[1:2]) == ["-m"] and len(command) > 2:
        return command[2], list(command[3:])
    name = Path(command[0]).stem if command else ""
    return f"train.{name}", list(command[1:])  # as recorded when the commands were scripts


def decoding_words(
    manifest: Mapping,
    where: str,
    aligned: str,
    prompts: Path,
    num_prompts: int,
    rewards: Sequence[str],
    out: Path,
) -> list[str]:
    """Returns the words of `eval.sweep` that decode a model as it is, with a run's sampling settings.

    Args:
      manifest: of the run.
      where: it comes from, for errors.
      aligned: the model.
      prompts: file of so many.
      rewards: that judge the completions.

    Raises:
      ValueError: the run was not made by `python -m eval.sweep`.
    """
    told = manifest.get("provenance") or {}
    module, words = _module(told.get("command") or [])
    samples = (manifest.get("extent") or {}).get("num_samples")
    if module != "eval.sweep" or not told.get("models") or samples is None:
        raise ValueError(
            f"--retrain: {shown(where, 200)} was not made by {spelled('sweep')}, whose settings are repeated"
        )
    options = {"beta": None, "reward": None} | {
        "num-samples": str(samples),
        "num-prompts": str(num_prompts),
        "reference": told["models"][0]["name"],
        "aligned": aligned,
        "lambda": "1",
        "prompts": str(prompts),
        "out": str(out),
    }
    return replaced(words, options | ({"reward": _specifications(rewards, words)} if rewards else {}))


def _specifications(names: Sequence[str], words: Sequence[str]) -> str:
    """Returns rewards as recorded words specify them: a name alone, where NAME=… was written, says nothing."""
    texts = [after if word == "--reward" else word.removeprefix("--reward=") for word, after in _pairs(words)]
    named = {spec.strip().partition("=")[0]: spec.strip() for text in texts for spec in text.split(",")}
    return ",".join(named.get(name, name) for name in names)


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Returns each word that gives rewards, with the one after it."""
    after = [*words[1:], ""]
    return [each for each in zip(words, after, strict=True) if each[0].partition("=")[0] == "--reward"]


def retrained_name(model: str, folder: Path) -> str:
    """Returns the MODEL that was trained anew in `folder`, in the place of `model`: the same base and part."""
    base, plus, _ = model.rpartition("+")
    own = folder / "best" if Path(model).name == "best" else folder
    return f"{base}+{own}" if plus and not Path(model).is_dir() else str(own)


@dataclass(frozen=True)
class Cost:
    """What finding a strength by DeRa takes, and what a model trained for every strength would."""

    aligned: float | None
    """Seconds of training; None is unknown."""
    retrained: float | None
    decoding: float | None
    """Seconds that the sweep at all strengths took."""
    strengths: int
    """Positive ones, each of which a sweep over β trains a model for."""

    @property
    def sweep_seconds(self) -> float | None:
        """What the sweep over β would take to train, by the mean of the two trainings."""
        if self.aligned is None or self.retrained is None:
            return None
        return self.strengths * (self.aligned + self.retrained) / 2

    @property
    def saved(self) -> float | None:
        """Share of the training time that is saved; negative if there are fewer than two strengths."""
        whole = self.sweep_seconds
        return None if not whole else 1 - (self.aligned + self.retrained) / whole


def strengths_to_train(strengths: Sequence[tuple[float, ...]]) -> int:
    """Returns for how many strengths of one aligned model there is a β/λ."""
    return sum(strength[0] > 0 and math.isfinite(strength[0]) for strength in strengths)


def differing_settings(there: Mapping, here: Mapping) -> list[str]:
    """Returns what decided the training of one manifest and is otherwise in the other, β aside.

    A recorded command trains otherwise where a default has changed since, or the data.
    """
    left_out = (
        "beta",
        "provenance",
        "seconds",
        "steps",
        "evaluation",
        "best",
        "finished",
        "files",
        "checkpoint",
    )
    # Newer versions tell more.
    return [
        f"{shown(name, 60)} {before!r:.40} there, {now!r:.40} here"
        for name, before, now in differences(there, here, left_out)
        if ABSENT not in (before, now)
    ]
