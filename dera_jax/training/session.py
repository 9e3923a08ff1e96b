"""What the trainings of a grid share: the mesh, the models and the data, each opened once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from dera_jax.common.notes import Tell, unheard
from dera_jax.data.records import load_records
from dera_jax.devices.mesh import open_mesh
from dera_jax.devices.placement import undivided_vocabulary
from dera_jax.devices.processes import leads
from dera_jax.policies import hub, load
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import Policy, with_params
from dera_jax.policies.save import save_adapter, save_policy
from dera_jax.policies.sizes import weight_bytes
from dera_jax.training import parameters
from dera_jax.training.runs import Save, fingerprint
from dera_jax.training.supervised import hold_out

TRAINING_BYTES = 16
"""Of a parameter: itself, its gradient, two moments in float32; adapters take less."""
AVERAGE_BYTES = 4
"""Of its average."""


class Adapters(NamedTuple):
    """Low-rank adapters to train in the place of all weights."""

    rank: int
    alpha: float
    targets: str = "all-linear"
    """Names of linear maps with commas between, or all-linear."""


@dataclass(frozen=True)
class Data:
    """What is trained and what is evaluated on."""

    items: list
    held_out: list
    settings: dict
    """What a manifest says of it."""

    @property
    def prompts(self) -> list:
        """Those that samples are drawn for."""
        return [item.asked or item.prompt for item in self.held_out or self.items]


@dataclass(frozen=True)
class Session:
    """Models and data of one or several trainings; what was opened for the first is there for the others.

    Parameters, rows and files are read when they are first asked for, in any order.
    """

    model: str
    """MODEL that the trainings start from."""
    dtype: str = "float32"
    """Type to compute in; auto is that of the files."""
    reference_model: str | None = None
    """MODEL that the policy is held near; None is `model`."""
    mesh_text: str | None = None
    """Such as data:2,model:4; None leaves it to the devices there are and to their memory."""
    chat_template: str | None = None
    """Text of a Jinja template, which is saved with the model; None is the tokenizer's own."""
    chat_template_kwargs: Mapping = field(default_factory=dict)
    """What it is told, unless a record says otherwise."""
    adapters: Adapters | None = None
    """None trains all weights."""
    from_scratch: bool = False
    """Whether the parameters are random, other ones for each seed."""
    gradient_checkpointing: bool = False
    averaged: bool = False
    """Whether the average of the parameters is kept beside them."""
    tell: Tell = unheard
    """Hears what became of records and models, a line at a time."""
    _data: dict[tuple, Data] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def mesh(self) -> Mesh | None:
        """That of all devices; None is one device."""
        each = TRAINING_BYTES + AVERAGE_BYTES * self.averaged
        return open_mesh(self.mesh_text, lambda: weight_bytes([self.model], "float32", [None]) // 4 * each)

    @cached_property
    def start(self) -> Policy:
        """The model as its files have it, without adapters to train."""
        return self._with_template(self._load(self.model))

    @cached_property
    def reference(self) -> Policy:
        """What the policy is held near: the model that it starts from, unless another is named."""
        name = self.reference_model
        return self._load(name) if name and name != self.model else self.start

    def policy(self, seed: int) -> Policy:
        """Returns the policy to train, with adapters if they are asked for.

        Args:
          seed: of adapters, and of all parameters of a policy from scratch.

        Raises:
          ValueError: a model that cannot be loaded; rank, alpha or targets that it cannot have.
        """
        if self.from_scratch:
            policy = self._with_template(load.fresh_policy(self.model, seed, self.dtype))
        else:
            policy = self.start
        if self.adapters is not None:
            rank, alpha, targets = self.adapters
            named = targets if targets == "all-linear" else targets.split(",")
            policy = with_lora(policy, rank, alpha, named, seed)
        # On a TPU blocks one by one take an hour to compile; elsewhere the copy of a loop is not worth it.
        scan = jax.default_backend() == "tpu"
        return replace(policy, config=replace(policy.config, remat=self.gradient_checkpointing, scan=scan))

    def settings(self, method: str, policy: Policy) -> dict:
        """Returns what the manifest of every method says of how it started."""
        told: dict = {"method": method, "start": {"model": policy.name, "fingerprint": policy.fingerprint}}
        if self.adapters is not None:
            rank, alpha, targets = self.adapters
            told["lora"] = {"r": rank, "alpha": alpha, "targets": targets}
        if self.chat_template is not None:
            told["chat_template"] = hashlib.sha256(self.chat_template.encode()).hexdigest()[:16]
        if self.chat_template_kwargs:
            told["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        return told | {"dtype": policy.config.dtype}

    def data(
        self,
        data: str,
        encode: Callable,
        *,
        eval_data: str | None = None,
        eval_share: float | None = None,
    ) -> Data:
        """Returns the data, which the first call reads; tells what became of its records.

        Args:
          data: where the records lie.
          encode: records to items and a report; of the same data, what the first call was given counts.
          eval_data: where those to evaluate on lie.
          eval_share: share of the prompts of `data` to evaluate on, in the place of `eval_data`.

        Raises:
          ValueError: data that cannot be read or used.
        """
        asked = data, eval_data, eval_share
        if asked not in self._data:
            self._data[asked] = self._read(data, encode, eval_data, eval_share)
        return self._data[asked]

    def save(self, policy: Policy, prefix: str = "") -> Save:
        """Returns what writes trained parameters of `policy`: its adapters alone, or the whole model.

        Args:
          prefix: of the policy's own among what is trained.
        """
        _, frozen = parameters.split(policy.params)

        def save(params: PyTree, folder: Path, manifest: dict) -> None:
            params = parameters.part(prefix, params)
            whole = with_params(policy, parameters.whole(policy.config, params, frozen))
            if policy.config.adapters:
                save_adapter(whole, folder, hub.split_adapter(self.model)[0], manifest)
            else:
                save_policy(whole, folder, manifest)

        return save

    def _load(self, name: str) -> Policy:
        mesh = self.mesh
        policy = load.load_policy(name, self.dtype, mesh=mesh, as_stored=True)
        undivided = undivided_vocabulary(mesh, policy.name, policy.config) if mesh else None
        if undivided and leads():
            self.tell(f"note: {undivided}")
        return policy

    def _with_template(self, policy: Policy) -> Policy:
        if self.chat_template is not None:
            policy.tokenizer.chat_template = self.chat_template
        return policy

    def _read(self, data: str, encode: Callable, eval_data: str | None, eval_share: float | None) -> Data:
        items = self._encoded(data, encode)
        held_out: Sequence = []
        if eval_data:
            held_out = self._encoded(eval_data, encode)
        elif eval_share:
            items, held_out = hold_out(items, eval_share)
            self.tell(f"{len(items)} to train, {len(held_out)} held out")
        settings = {
            "data": data,
            "examples": len(items),
            "examples_hash": fingerprint(items),
            "held_out": len(held_out),
        }
        return Data(items, list(held_out), settings)

    def _encoded(self, data: str, encode: Callable) -> list:
        items, report = encode(load_records(data, settings=self.chat_template_kwargs))
        self.tell(report.told(data))
        return items
