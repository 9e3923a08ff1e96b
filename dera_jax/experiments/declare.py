"""Experiments, declared: which commands make which folders, of what they need, at which strengths.

An experiment of this field has one shape: a pair aligned at β, decoded at many strengths λ (DeRa); models
retrained at β/λ; and, for comparison, models of combined weights. Small versions and those of the paper's size
differ in names and numbers only. Nothing is run here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dera_jax.common.folders import data_folder
from dera_jax.strengths import format_strength


@dataclass(frozen=True)
class Step:
    """One command, and the folder it makes."""

    command: str
    """`train.rlhf`, `eval.sweep` …, or a function as `module:function`."""
    folder: str
    """What it makes, below the folder of all work."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Names as in Python to values; a step, or a place in one, stands for its path."""

    def __truediv__(self, part: str) -> "Place":
        """Returns the place of a file or folder in what the step makes."""
        return Place(self, part)

    def needs(self) -> list["Step"]:
        """Returns the steps whose folders this one reads."""
        found = (
            step for value in self.options.values() for each in _several(value) for step in _steps_of(each)
        )
        return list(dict.fromkeys(found))

    def outside(self) -> list[str]:
        """Returns the names in the data folder of all that this step, and the steps it needs, read there."""
        own = (
            each.name
            for value in self.options.values()
            for each in _several(value)
            for each in _outside(each)
        )
        return list(dict.fromkeys([*own, *(name for need in self.needs() for name in need.outside())]))

    def arguments(self, work: Path | str, data: Path | str | None = None) -> dict[str, str]:
        """Returns the options as text, `--out` among them; a flag's is empty.

        Args:
          work: the folder of all work.
          data: the folder of what is not made here, by default `folders.data_folder()`.
        """
        data = data_folder() if data is None else data
        given = {
            name: "" if value is True else ",".join(_text(each, work, data) for each in _several(value))
            for name, value in self.options.items()
            if value is not None and value is not False
        }
        return given | {"out": f"{work}/{self.folder}"}

    def words(self, work: Path | str, data: Path | str | None = None) -> list[str]:
        """Returns the words of the command line behind `python -m`; the folders are those of `arguments`."""
        told = self.arguments(work, data).items()
        return [self.command, *(f"{option(name)}={text}" if text else option(name) for name, text in told)]


@dataclass(frozen=True)
class Place:
    """A file or folder in what a step makes, or the step's own folder."""

    step: Step
    part: str = ""
    kind: str = ""
    """Written before the path, such as `model:`."""
    base: "Source | None" = None
    """Of an adapter: the model that it adapts, BASE+ADAPTER."""

    def path(self, work: Path | str, data: Path | str) -> str:
        """Returns where it is."""
        before = self.kind if self.base is None else f"{_text(self.base, work, data)}+"
        return "/".join(filter(None, (f"{before}{work}", self.step.folder, self.part)))


@dataclass(frozen=True)
class Outside:
    """A file or folder of the data folder, which no step makes."""

    name: str
    """Below the data folder."""
    kind: str = ""
    """Written before the path, such as `lexicon:`."""

    def path(self, data: Path | str) -> str:
        """Returns where it is."""
        return f"{self.kind}{data}/{self.name}"


Source = Step | Place | Outside | str
"""Where a model or data comes from: what a step makes, or a name as commands take it."""


def option(name: str) -> str:
    """Returns a command line's name for an option.

    >>> option("lambda_"), option("max_steps")
    ('--lambda', '--max-steps')
    """
    return "--" + name.strip("_").replace("_", "-")


def _several(value: Any) -> Sequence:
    return value if isinstance(value, (tuple, list)) else (value,)


def _steps_of(value: Any) -> list[Step]:
    if isinstance(value, Place):
        return [*_steps_of(value.base), value.step]
    return [value] if isinstance(value, Step) else []


def _outside(value: Any) -> list[Outside]:
    if isinstance(value, Place):
        return _outside(value.base)
    return [value] if isinstance(value, Outside) else []


def _text(value: Any, work: Path | str, data: Path | str) -> str:
    if isinstance(value, Step):
        return Place(value).path(work, data)
    if isinstance(value, Place):
        return value.path(work, data)
    if isinstance(value, Outside):
        return value.path(data)
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Experiment:
    """A pair at many strengths, beside retrained models and combined weights."""

    name: str
    """Its folder, and what it is called by."""
    title: str
    """What it is about, in one line."""
    reference: Source
    """λ = 0."""
    training: Step
    """How the reference is aligned, without β, seed and folder."""
    beta: float
    """KL strength of the aligned model, λ = 1."""
    strengths: tuple[float, ...]
    """Decoded by mixing (DeRa)."""
    retrained: tuple[float, ...] = ()
    """Also trained, at β/λ."""
    repeated: tuple[float, ...] = ()
    """Trained with every seed; 1 among them, so that DeRa has as many."""
    num_seeds: int = 1
    combined: tuple[float, ...] = ()
    """Also decoded from combined weights."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Options of all sweeps: prompts, rewards, sampling."""
    pairs: Source | None = None
    """Preference pairs that every policy's accuracy is measured on (Eq. 14)."""
    aligned_model: Source | None = None
    """The aligned model, where it is not to be trained here."""
    models: str = ""
    """Folder of the trained models, by default the experiment's own; experiments with the same training share it."""

    def __post_init__(self):
        if self.num_seeds > 1 and 1.0 not in self.repeated:
            raise ValueError(f"{self.name}: expected 1 among the repeated strengths, found {self.repeated}")
        if strange := sorted({*self.repeated} - {*self.retrained, 1.0}):
            raise ValueError(f"{self.name}: strengths {strange} are repeated, but not retrained")
        if min((*self.retrained, 1.0)) <= 0:
            raise ValueError(f"{self.name}: no β/λ for λ ≤ 0, found {self.retrained}")

    def aligned(self, strength: float = 1.0, seed: int = 0) -> Source:
        """Returns what trains at β/λ: the aligned model at λ = 1."""
        if self.aligned_model is not None and strength == 1:
            return self.aligned_model
        beta = f"{self.beta / strength:.6g}"
        trained = replace(
            self.training,
            folder=f"{self.models or self.name}/beta={beta}-seed={seed}",
            options={**self.training.options, "beta": beta, "seed": seed},
        )
        return Place(trained, base=self.reference) if self.training.options.get("lora_r") else trained

    def dera(self, seed: int = 0) -> Step:
        """Returns the sweep over all strengths; of further seeds over the repeated ones (λ = 0 has nothing trained)."""
        some = self.strengths if seed == 0 else self.repeated
        return self._sweep(f"dera-seed={seed}", self.aligned(seed=seed), some, self.beta)

    def retrained_sweep(self, strength: float, seed: int = 0) -> Step:
        """Returns the decoding of a model trained at β/λ, as it is."""
        name = f"retrained-{strength:.4g}-seed={seed}"
        return self._sweep(name, self.aligned(strength, seed), (1.0,), self.beta / strength)

    def combined_sweep(self, strength: float) -> Step:
        """Returns the decoding of the weight-combined model, as it is."""
        pair = {
            "reference": self.reference,
            "aligned": self.aligned(),
            "lambda_": format_strength((strength,)),
        }
        model = Step("eval.combine", f"{self.name}/weights-{strength:.4g}", pair)
        return self._sweep(
            f"combined-{strength:.4g}", model, (1.0,), self.beta / strength if strength > 0 else None
        )

    def _sweep(self, name: str, aligned: Source, strengths: Sequence[float], beta: float | None) -> Step:
        pair = {
            "reference": self.reference,
            "aligned": aligned,
            "lambda_": tuple(format_strength((strength,)) for strength in strengths),
            "beta": None if beta is None else f"{beta:.6g}",
        }
        return Step("eval.sweep", f"{self.name}/{name}", pair | dict(self.decoding))

    def trials(self) -> Iterator[tuple[float, int]]:
        """Yields strength and seed of every model retrained at another β."""
        for strength in self.retrained:
            if strength != 1:
                for seed in range(self.num_seeds if strength in self.repeated else 1):
                    yield strength, seed

    def sweeps(self) -> list[Step]:
        """Returns all that is decoded."""
        seeds = range(1, self.num_seeds)
        return [
            self.dera(),
            *(self.retrained_sweep(*trial) for trial in self.trials()),
            *map(self.dera, seeds),
            *map(self.combined_sweep, self.combined),
        ]

    def dera_pairs(self) -> Step:
        """Returns the accuracy on preference pairs of every strength."""
        return self._accuracy("pairs-dera", self.aligned(), self.strengths)

    def retrained_pairs(self, strength: float) -> Step:
        """Returns the accuracy of a retrained model."""
        return self._accuracy(f"pairs-retrained-{strength:.4g}", self.aligned(strength), (1.0,))

    def _accuracy(self, name: str, aligned: Source, strengths: Sequence[float]) -> Step:
        lambdas = tuple(format_strength((strength,)) for strength in strengths)
        pair = {"reference": self.reference, "aligned": aligned, "lambda_": lambdas, "pairs": self.pairs}
        return Step("eval.score", f"{self.name}/{name}.json", pair | {"stop": self.decoding.get("stop")})

    def measurements(self) -> list[Step]:
        """Returns all that is measured: sweeps and, with pairs, accuracies."""
        if self.pairs is None:
            return self.sweeps()
        others = (self.retrained_pairs(strength) for strength in self.retrained if strength != 1)
        return [*self.sweeps(), self.dera_pairs(), *others]
