"""Training runs in folders: what decides a run, going on with one, its last and its best model."""

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from jaxtyping import PyTree

from dera_jax.common.differences import differences, flat
from dera_jax.common.files import leftovers, make_folder, remove_leftovers
from dera_jax.common.json_files import write_json
from dera_jax.common.locks import lock_folder, unlock
from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown
from dera_jax.devices import processes
from dera_jax.policies import manifests
from dera_jax.training.averaging import averaged, chosen
from dera_jax.training.checkpoints import steps_in
from dera_jax.training.config import RunConfig, TrainConfig
from dera_jax.training.log import FILES
from dera_jax.training.loop import Method, fit

Save = Callable[[PyTree, Path, dict], None]
"""Writes trained parameters as a model folder with a manifest."""
AFTERWARDS = (
    "finished",
    "files",
    "provenance",
    "seconds",
    "steps",
    "evaluation",
    "best",
    "checkpoint",
    "certificate",
)
"""What a manifest says beside the settings that decide the parameters."""
STEPS = "train_config.max_steps"
HASHES = {
    "data": ("examples_hash", "prompts_hash"),
    "start.model": ("start.fingerprint",),
    "reference.model": ("reference.fingerprint",),
}
"""Settings that say where something lies, and the hashes of what lies there."""
LATER = ("reward_hashes.",)
"""Beginnings of the names of settings that older runs do not tell."""
ADDED = {
    "train_config.warmup_steps": 0.0,
    "train_config.adam_beta1": 0.9,
    "train_config.adam_beta2": 0.999,
    "train_config.adam_epsilon": 1e-8,
    "train_config.ema_decay": 0.0,
    "ppo.kl_estimator": "sampled",
    "ppo.value_lam": None,
    "ppo.value_learning_rate": None,
    "ppo.value_warmup_steps": 0,
}
"""Settings that manifests of older versions do not tell, and what those versions did."""


@dataclass(frozen=True)
class Best:
    """What makes one evaluation better than another."""

    figure: str
    largest: bool = False

    def improves(self, value: float, before: float | None) -> bool:
        """Whether `value` is better than the best before."""
        return before is None or (value > before if self.largest else value < before)


def run_training(
    method: Method,
    save: Save,
    config: TrainConfig,
    run: RunConfig,
    out: Path,
    settings: dict,
    provenance: dict,
    best: Best,
    mesh: Mesh | None = None,
    tell: Tell | None = None,
) -> dict:
    """Trains in OUT, to its end: the last model lies in OUT itself, the best one in OUT/best.

    Killed at any moment, it ends the next time as if it had not been: of each model the manifest comes
    last, and the checkpoints go when that of the last model is there, but for the last one, from which
    more steps go on. Returns the manifest.

    Args:
      save: writes a model folder, its manifest last.
      settings: everything that decides the parameters; kept in OUT/manifest.json.
      best: by which figure of the evaluations, if the method has them.
      tell: hears how it goes, see `fit`.

    Raises:
      ValueError: training stopped, see `fit`.
    """
    start, writes = time.perf_counter(), jax.process_index() == 0
    manifest = settings | {"train_config": asdict(config), "provenance": provenance}
    if writes:
        make_folder(out)
        if tell and (longer := _longer(out, config)):
            tell(longer)
        write_json(out / manifests.NAME, manifest)

    def keep(params: PyTree, folder: Path, told: dict) -> None:
        whole = params if jax.process_count() == 1 else process_allgather(params, tiled=True)
        if writes:
            save(whole, folder, told)

    found: dict = processes.from_first(lambda: _best_so_far(out))
    last: dict = {}
    method = averaged(method, config.ema_decay)
    for step, state, evaluated in fit(method, config, run, out, mesh, tell):
        params = chosen(state)
        if evaluated:
            last = evaluated
        value = evaluated.get(best.figure)
        if value is not None and best.improves(value, found.get(best.figure)):
            found = {"step": step, best.figure: value}
            keep(params, out / "best", manifest | {"best": found})
    if method.certify and (certificate := method.certify(state)):
        manifest |= {"certificate": certificate}
    manifest |= {
        "steps": config.max_steps,
        "evaluation": last,
        "best": found,
        "seconds": round(time.perf_counter() - start, 1),
        "finished": True,
    } | ({} if run.save_only_model else {"checkpoint": config.max_steps})
    keep(params, out, manifest)
    if writes:
        _remove_checkpoints(out, manifest)
    return manifest


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps other runs out of OUT, and removes what killed ones were writing.

    Raises:
      ValueError: another run is in it; in all processes of this one.
    """

    def hold() -> int:
        if not processes.leads():
            return -1
        make_folder(out)
        lock = lock_folder(out)
        for folder in _folders(out):
            remove_leftovers(folder)
        return lock

    lock = processes.together(hold)
    try:
        yield
    finally:
        if lock >= 0:
            unlock(lock)


def tidy(out: Path) -> None:
    """Removes what a run that was killed after its end has left in OUT, which holds a finished one.

    Raises:
      ValueError: another run is in it.
    """

    def left() -> bool:
        return bool(_unkept(out, manifests.read_manifest(out))) or any(map(leftovers, _folders(out)))

    if processes.from_first(left):
        with alone(out):
            if processes.leads():
                _remove_checkpoints(out, manifests.read_manifest(out))


def _remove_checkpoints(out: Path, manifest: dict) -> None:
    """Removes the checkpoints of a finished run but the one that its manifest says is kept."""
    for path in _unkept(out, manifest):
        shutil.rmtree(path, ignore_errors=True)


def _unkept(out: Path, manifest: dict) -> list[Path]:
    folder, kept = out / "checkpoints", manifest.get("checkpoint")
    if kept is None or kept not in steps_in(folder):
        return [folder] if folder.exists() else []
    return [path for path in folder.iterdir() if path.name != str(kept)]


def _folders(out: Path) -> list[Path]:
    return [out, out / "best", out / "cache"]


def is_finished(
    out: Path,
    settings: dict,
    config: TrainConfig,
    given: Collection[str] = (),
    tell: Tell = warnings.warn,
) -> bool:
    """Whether OUT holds the finished run of these settings; False if it is not there, or half done.

    A run of fewer steps whose last checkpoint is there is one half done. The same data and models may lie
    elsewhere. In a run of several processes the first one looks.

    Args:
      given: names of settings that the user has chosen; of what differs, they are told first.
      tell: hears of a finished model that is made again.

    Raises:
      ValueError: OUT holds something else; names the settings that differ. Or a finished model that is not
        what was written, and no checkpoint to make it from again.
    """
    return processes.from_first(lambda: _is_finished(out, settings, config, given, tell))


def _is_finished(out: Path, settings: dict, config: TrainConfig, given: Collection[str], tell: Tell) -> bool:
    if not (out / manifests.NAME).exists():
        if manifests.holds_model(out):
            raise ValueError(f"{out}: already holds a model; choose another --out or remove it")
        # The manifest is there before them: these are somebody else's, and would begin anew.
        if others := [name for name in FILES if (out / name).exists()]:
            raise ValueError(f"{out}: already holds {others[0]}, but no training; choose another --out")
        return False
    there = manifests.read_manifest(out)
    if "method" not in there:
        raise ValueError(f"{out}: holds what no training has made; choose another --out")
    here = json.loads(json.dumps(settings | {"train_config": asdict(config)}))
    before, now = (flat({k: v for k, v in m.items() if k not in AFTERWARDS}) for m in (there, here))
    if before.get("method") != now.get("method"):
        raise ValueError(
            f"{out}: holds a run of another method ({_told(before.get('method'))} there, "
            f"{_told(now.get('method'))} now); choose another --out or remove it"
        )
    _leave_places(before, now)
    now = {name: value for name, value in now.items() if name in before or not name.startswith(LATER)}
    before = {name: value for name, value in ADDED.items() if name in now} | before
    # What an older version did not know is what it is by default: nothing.
    found = sorted(differences(before, now, absent=None), key=lambda each: each.name)
    (steps,) = found if [each.name for each in found] == [STEPS] else (None,)
    longer = steps is not None and isinstance(steps.there, int) and steps.there < steps.here
    if longer and steps_in(out / "checkpoints"):
        return False
    if found:
        found.sort(key=lambda each: each.name.rpartition(".")[2] not in given)
        told = "; ".join(f"{name}: {_told(before)} there, {_told(now)} now" for name, before, now in found)
        gone = "; its last checkpoint is gone: --save-only-model, or an older version" * (
            longer and bool(there.get("finished"))
        )
        raise ValueError(
            f"{out}: holds a run with other settings ({told}){gone}; choose another --out or remove it"
        )
    if not there.get("finished"):
        return False
    damage = manifests.find_damage(out, there)
    if damage and not steps_in(out / "checkpoints"):
        raise ValueError(f"{out}: was finished, but {damage}; choose another --out or remove it")
    if damage:
        tell(f"{shown(out, 200)}: was finished, but {damage}: it is made again from its last checkpoint")
    return not damage


def _longer(out: Path, config: TrainConfig) -> str | None:
    """Returns what becomes of a run that is to have more steps than it was begun with; None of another."""
    there = manifests.read_manifest(out) if (out / manifests.NAME).exists() else {}
    before = flat(there).get(STEPS)
    if not isinstance(before, int) or before >= config.max_steps:
        return None
    by_share = config.warmup_steps < 1 and (config.warmup_steps or config.warmup_ratio) > 0
    if config.lr_scheduler_type == "constant" and not by_share:
        told = "as if it had been begun with them"
    else:
        told = (
            f"from here on at the learning rates of {config.max_steps} steps (--lr-scheduler-type, warm-up): "
            "the result is not that of a run begun with them"
        )
    return f"{shown(out, 200)}: a run of {before} steps gets {config.max_steps}, {told}"


def fingerprint(items: Sequence) -> str:
    """Returns a hash of training data."""
    told = hashlib.sha256()
    for item in items:
        told.update(repr(item).encode())
    return told.hexdigest()[:16]


def _leave_places(before: dict, now: dict) -> None:
    """Takes out of the settings of two runs where something lies that is the same by its hash."""
    for place, hashes in HASHES.items():
        # Random parameters have a seed in the place of a hash.
        told = [now[name] for name in hashes if name in now and now[name] == before.get(name)]
        if told and not str(told[0]).startswith("random-"):
            before.pop(place, None)
            now.pop(place, None)
        else:
            for name in hashes:  # which runs of older versions may lack
                if name not in before:
                    now.pop(name, None)


def _best_so_far(out: Path) -> dict:
    """Returns step and figure of the model in OUT/best, if the run goes on from a checkpoint.

    Where its manifest speaks of other weights than lie there, the evaluation that they were being written
    for is still to come again, or will be that of the checkpoint itself.
    """
    folder = out / "best"
    if not (out / "checkpoints").exists() or not (folder / manifests.NAME).exists():
        return {}
    manifest = manifests.read_manifest(folder)
    return {} if manifests.find_damage(folder, manifest) else manifest.get("best", {})


def _told(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
